"""Classes of datasets and models whose name does not settle what becomes of them.

A lesion lies in an organ. Whether the organ's mask includes it, only people know: where a list of
classes has `liver` and `liver tumour`, leaving the tumour out would make a hole in the liver, and
joining them might be wrong as well. So it is asked about.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Final

from atlas_core.errors import InvalidInput
from atlas_core.organs import OrganScheme

_LESION: Final = re.compile(
    r"tumou?re?s?|neoplas\w*|cancers?|carcinomas?|adenomas?|ha?emangiomas?|metasta\w*|lesion(?:en|s)?"
    r"|l(?:ä|ae)sion(?:en)?|cysts?|zysten?|krebs|karzinom\w*|malignan\w*"
    r"|(?<![a-z])(?:mass(?:es)?|mets|nodules?|hcc|rcc|pdac|abscess(?:es)?)(?![a-z])"
)
"""Words for what grows in an organ; the last few only by themselves ("mass", not "massive")."""


_ADJECTIVES: Final = {
    "aortic": "aorta",
    "gastric": "stomach",
    "hepatic": "liver",
    "pancreatic": "pancreas",
    "renal": "kidney",
    "splenic": "spleen",
}

_FILLERS: Final = ("of", "in", "the", "primary", "primaries")


def is_lesion(name: str) -> bool:
    """Whether a class is something that lies in an organ, by its name.

    >>> is_lesion("liver_tumour"), is_lesion("Lebertumor"), is_lesion("liver")
    (True, True, False)
    """
    return _LESION.search(_words(name)) is not None


def without_lesion(name: str) -> str:
    """What is left of the name of a lesion: the organ it lies in, or nothing.

    >>> without_lesion("Liver-Tumor"), without_lesion("renal cyst"), without_lesion("tumour")
    ('liver', 'kidney', '')
    """
    left = _LESION.sub(" ", _words(name)).split()
    return " ".join(_ADJECTIVES.get(word, word) for word in left if word not in _FILLERS)


def open_lesions(
    names: Iterable[str],
    scheme: OrganScheme,
    present: Iterable[str],
    named: Mapping[str, str] = MappingProxyType({}),
) -> dict[str, str | None]:
    """Lesions among `names` of which one must ask whether an organ includes them.

    Args:
        present: organs that other names of the list mean.
        named: further names of organs.

    Returns:
        Name → the organ that it seems to lie in; None where its name does not say, and it may be
        any. A lesion of what is no organ of ours is not asked about, nor one that is an organ of
        the scheme by itself.

    >>> from atlas_core.organs import read_scheme
    >>> names = ["liver", "liver tumour", "lung nodule", "tumour", "kidney cyst"]
    >>> open_lesions(names, read_scheme("abdomen_atlas_1_0"), ["liver", "kidney_left"])
    {'liver tumour': 'liver', 'tumour': None, 'kidney cyst': 'kidney_left'}
    """
    there = set(present)
    further = {_words(name): (organ,) for name, organ in named.items()}
    asked: dict[str, str | None] = {}
    for name in names:
        if not is_lesion(name) or scheme.called(name):
            continue
        host = without_lesion(name)
        organs = further.get(host) or tuple(organ.name for organ in scheme.called(host))
        concerned = [organ for organ in organs if organ in there]
        if concerned or (not host and there):
            asked[name] = " or ".join(concerned) or None
    return asked


def require_answers(lesions: Mapping[str, str | None], case: str, remedy: str) -> None:
    """Refuses a list of classes with lesions that nobody has said anything about.

    Args:
        lesions: see `open_lesions`.
        remedy: how to answer.

    Raises:
        InvalidInput: there are any; the message asks about each.
    """
    if lesions:
        questions = [
            f"is {name!r} part of {organ or 'an organ, and of which'}?"
            for name, organ in lesions.items()
        ]
        raise InvalidInput(
            "organs may include their lesions or not, and nothing says which",
            case=case,
            expected="an answer to: " + " ".join(questions),
            remedy=remedy,
        )


def _words(name: str) -> str:
    """ "LeftKidney_Tumor" → "left kidney tumor"."""
    split = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name)
    return re.sub(r"[^a-z0-9äöüß]+", " ", split.lower()).strip()
