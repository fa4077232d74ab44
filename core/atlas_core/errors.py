"""The errors of Atlas Loop: each names the problem, the case, expected and found, and a remedy.

Every error that a user can cause or mend derives from `AtlasError`. A shell (command line, gRPC
servicer, HTTP service) maps the *class* to its own status in one table and shows the message as is;
messages contain no patient data, only case ids, organ names and numbers.
"""

from __future__ import annotations


def printable(text: str) -> str:
    r"""`text` as it may be shown anywhere: in a terminal, in JSON, in a log, in the catalog.

    Characters that control a terminal or the direction of text, and bytes of a file name that are
    no UTF-8, become backslash escapes.

    >>> print(printable("M\\udcfcller \\x1b[31m"))
    M\xfcller \x1b[31m
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else _escape(c) for c in text)


def _escape(character: str) -> str:
    code = ord(character)
    if 0xDC80 <= code <= 0xDCFF:  # a byte that Python could not decode
        return f"\\x{code - 0xDC00:02x}"
    return character.encode("unicode_escape").decode()


class AtlasError(Exception):
    """Base of all domain errors.

    Args:
        what: the rule that was broken, in one clause: "mask and CT have different grids".
        case: id of the case, or name of the file relative to what the user passed; None if neither.
        expected: what would have been right.
        got: what was found.
        remedy: what the user can do about it.
    """

    def __init__(
        self,
        what: str,
        *,
        case: str | None = None,
        expected: object = None,
        got: object = None,
        remedy: str | None = None,
    ) -> None:
        self.what = what
        self.case = case
        self.expected = expected
        self.got = got
        self.remedy = remedy
        # Names and values of others' files are in it. Line ends are ours: some remedies have lines.
        super().__init__("\n".join(map(printable, self._sentence().split("\n"))))

    def _sentence(self) -> str:
        text = f"{self.case}: {self.what}" if self.case else self.what
        details = [
            f"{word} {value}"
            for word, value in (("expected", self.expected), ("got", self.got))
            if value is not None
        ]
        if details:
            text += f" ({', '.join(details)})"
        return f"{text}; {self.remedy}" if self.remedy else text

    def with_case(self, case: str) -> AtlasError:
        """The same error for `case`, which the caller knows and the raiser does not."""
        return type(self)(
            self.what, case=case, expected=self.expected, got=self.got, remedy=self.remedy
        )


class InvalidInput(AtlasError):
    """A value, file or request breaks a documented rule; sending it again cannot help."""


class UnsupportedVolume(InvalidInput):
    """A readable file that is no 3D CT or label volume: 4D, RGB, wrong modality, bad affine."""


class CorruptFile(InvalidInput):
    """A file that cannot be read to its end, or whose header contradicts its bytes."""


class GridMismatch(InvalidInput):
    """Two volumes that must share one grid do not."""


class UnknownLabel(InvalidInput):
    """A label value or organ name outside the map that was declared for it."""


class LimitExceeded(AtlasError):
    """More was asked for than the configured bound allows."""


class NotFound(AtlasError):
    """A case, model, dataset or file that does not exist."""


class Conflict(AtlasError):
    """The state changed in between, or a name is taken by something else."""


class Unavailable(AtlasError):
    """A service or model does not answer at the moment; trying again may help."""


class ConfigurationError(AtlasError):
    """A setting that cannot work: a taken port, a missing file, a contradiction."""
