"""Classes of datasets and models whose name does not settle what becomes of them.

A lesion lies in an organ. Whether the organ's mask includes it, only people know: where a list of
classes has `liver` and `liver tumour`, leaving the tumour out would make a hole in the liver, and
joining them might be wrong as well. So it is asked about.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Final

from atlas_core.errors import InvalidInput

_LESION: Final = re.compile(
    r"tumou?re?s?|neoplas\w*|cancers?|carcinomas?|adenomas?|ha?emangiomas?|metasta\w*|lesion(?:en|s)?"
    r"|l(?:ä|ae)sion(?:en)?|cysts?|zysten?|krebs|karzinom\w*|malignan\w*"
    r"|(?<![a-z])(?:mass(?:es)?|nodules?|hcc|rcc|pdac|abscess(?:es)?)(?![a-z])"
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
    return " ".join(_ADJECTIVES.get(word, word) for word in left if word not in ("of", "in", "the"))


def open_lesions(
    names: Iterable[str],
    structure_of: Callable[[str], str | None],
    present: Iterable[str],
) -> dict[str, str | None]:
    """Lesions among `names` of which one must ask whether an organ includes them.

    Args:
        structure_of: what a name means among our structures, or None.
        present: structures that other names of the list mean.

    Returns:
        Name → the structure that it seems to lie in; None where its name does not say, and it may
        be any. A lesion of what is no structure of ours is not asked about.

    >>> open_lesions(["liver", "liver tumour", "lung nodule", "tumour"], {"liver": "liver"}.get,
    ...              ["liver"])
    {'liver tumour': 'liver', 'tumour': None}
    """
    there = set(present)
    asked: dict[str, str | None] = {}
    for name in names:
        if not is_lesion(name):
            continue
        host = without_lesion(name)
        structure = structure_of(host) if host else None
        if structure in there or (not host and there):
            asked[name] = structure
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
    return re.sub(r"[^a-z0-9äöüß]+", " ", name.lower()).strip()
