"""What label values and mask files mean by the names that people give them.

A name is an organ's, however it is written; a lesion's, which is a part of its organ; that of
voxels nobody looked at; or something else. An original label overrides every other for ever, so
what a name leaves open is left out, and said.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from atlas_core.errors import InvalidInput
from atlas_core.importing.class_names import is_lesion, without_lesion
from atlas_core.importing.presets import LabelMap, Structure, structure_of
from atlas_core.organs import OrganScheme, plain_name

IGNORED: Final = re.compile(r"(ignored?|ignore label|unlabell?ed|not annotated|unannotated|void)")

ROOT_NAME: Final = "dataset.json"


@dataclass(frozen=True)
class NamedMap:
    """What the values of a label map mean, by their names.

    Attributes:
        meaning: the organs behind the values.
        notes: what of it deserves a look, in sentences.
    """

    meaning: LabelMap
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class NamedMasks:
    """What mask files mean, by their names.

    Attributes:
        masks: file name without suffix → structure; of several, the first is the organ itself.
        left_out: file name → why it does not count. Names that mean nothing here are not in it.
    """

    masks: Mapping[str, Structure]
    left_out: Mapping[str, str]


def nnunet_map(dataset_json: bytes, scheme: OrganScheme) -> NamedMap:
    """The label names of an nnU-Net or Decathlon ``dataset.json``.

    Both forms are read: name → value, or → the list of values of a region ("kidney": [1, 2, 3]),
    and value → name. Names are recognised however they are written ("Left Kidney", "IVC").

    Raises:
        InvalidInput: no JSON, with line and column; or none of that form.
    """
    content = read_json(dataset_json, ROOT_NAME)
    try:
        return named_map(_named_values(content["labels"]), scheme)
    except (ValueError, LookupError, TypeError, AttributeError, OverflowError):
        raise InvalidInput(
            f"{ROOT_NAME} is not nnU-Net's",
            expected='{"labels": {"background": 0, "liver": 1, ...}}',
            remedy="correct it there",
        ) from None


def read_json(content: bytes, name: str) -> Any:
    """What a JSON file holds: UTF-8 or UTF-16, with or without a byte order mark.

    Raises:
        InvalidInput: no JSON, with line and column.
    """
    try:
        return json.loads(content, object_pairs_hook=_distinct)
    except json.JSONDecodeError as error:
        where = f"{error.msg} in line {error.lineno}, column {error.colno}"
        raise InvalidInput(f"{name} is no JSON", got=where, remedy="correct it there") from None
    except UnicodeDecodeError as error:
        where = f"byte {error.start} is no {error.encoding}"
        raise InvalidInput(f"{name} is no text", got=where, remedy="save it as UTF-8") from None
    except _TwiceError as error:
        raise InvalidInput(
            f"{name} names the same thing twice", got=str(error), remedy="correct it there"
        ) from None
    except (ValueError, RecursionError):
        raise InvalidInput(f"{name} is no JSON", remedy="save it as UTF-8") from None


class _TwiceError(Exception):
    """A key of an object stands there twice: one of the two would be lost."""


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise _TwiceError(next(name for name in names if names.count(name) > 1))
    return found


def _named_values(labels: Mapping[str, Any]) -> list[tuple[str, tuple[int, ...]]]:
    if all(key.isdigit() for key in labels):
        return [(str(name), (int(value),)) for value, name in labels.items()]
    return [
        (name, tuple(int(v) for v in values) if isinstance(values, list) else (int(values),))
        for name, values in labels.items()
    ]


def named_map(
    pairs: Iterable[tuple[str, tuple[int, ...]]], scheme: OrganScheme, *, partial: bool = False
) -> NamedMap:
    """The organs behind values with names.

    A region is an organ with all its values. A lesion is a part of the organ in its name; without
    one, of the only organ that there is. Values that several organs claim, lesions that may lie in
    any of several organs, and voxels that nobody looked at make their label maps unclear.

    Args:
        pairs: name → its value, or the values of a region; 0 is the background.
        partial: as `LabelMap.partial`.
    """
    names: dict[str, tuple[int, ...]] = {}
    for name, values in pairs:  # a name may stand at several values
        names[name] = (*names.get(name, ()), *(value for value in values if value))
    claims: dict[int, list[Structure]] = {}
    for name, values in names.items():
        structure = structure_of(name, scheme)
        for value in values if structure and not is_lesion(name) else ():
            claims.setdefault(value, []).append(structure)
    found, unclear = _settled(claims)
    notes = []
    organs = sorted({*found.values()})
    for name, values in names.items():
        free = [value for value in values if value not in found and value not in unclear]
        if IGNORED.fullmatch(_words(name)):
            unclear.update(dict.fromkeys(values, f"{name}: not annotated"))
        elif free and (organ := _host(name, organs, scheme)):
            found.update(dict.fromkeys(free, organ))
            shown = ", ".join(map(str, free))
            notes.append(f"{name} (value {shown}) is taken as a part of {' and '.join(organ)}")
        elif free and is_lesion(name) and not without_lesion(name) and organs:
            unclear.update(dict.fromkeys(free, f"{name}: may lie in any organ"))
    known = {value for values in names.values() for value in values}
    labels = {value: organ for value, organ in found.items() if value not in unclear}
    others = frozenset(known - set(labels) - set(unclear))
    return NamedMap(
        LabelMap(labels=labels, others=others, unclear=unclear, partial=partial), tuple(notes)
    )


def _settled(
    claims: Mapping[int, list[Structure]],
) -> tuple[dict[int, Structure], dict[int, str]]:
    """Value → the structure that it belongs to; value → why it is unclear."""
    found: dict[int, Structure] = {}
    unclear: dict[int, str] = {}
    single = {one[0] for claimed in claims.values() for one in claimed if len(one) == 1}
    for value, claimed in claims.items():
        # The region of both kidneys says nothing beside those of each.
        wanted = {one for one in claimed if len(one) == 1 or not single & set(one)}
        if len(wanted) == 1:
            found[value] = wanted.pop()
        else:
            names = sorted({organ for one in wanted or claimed for organ in one})
            unclear[value] = f"{' or '.join(names)}"
    return found, unclear


def _host(name: str, organs: list[Structure], scheme: OrganScheme) -> Structure:
    """The organ that a lesion is a part of, if there is no doubt; else nothing."""
    if not is_lesion(name):
        return ()
    rest = without_lesion(name)
    if not rest:
        return organs[0] if len(organs) == 1 else ()
    named = structure_of(rest, scheme)
    return named if named in organs else ()


def _words(name: str) -> str:
    """ "LeftKidney_Tumor-1" → "left kidney tumor 1"."""
    split = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name)
    return " ".join(re.sub(r"[^a-z0-9]+", " ", split.lower()).split())


def named_masks(
    files: Collection[str], preset: Mapping[str, Structure] | None, scheme: OrganScheme
) -> NamedMasks:
    """The structures behind the names of mask files.

    Args:
        files: their names without suffix.
        preset: the names that a preset knows, those of an organ's lesions behind its own; None:
            names and aliases of the organs.
    """
    organs: dict[Structure, list[str]] = {}
    lesions: dict[Structure, list[str]] = {}
    for name in sorted(files):
        found, part = _of_name(name, scheme) if preset is None else _of_preset(name, preset)
        if found:
            (lesions if part else organs).setdefault(found, []).append(name)
    left_out: dict[str, str] = {}
    masks: dict[str, Structure] = {}
    single = {one[0] for one in organs if len(one) == 1}
    for pair in [one for one in (*organs, *lesions) if len(one) > 1 and single & set(one)]:
        for name in (*organs.pop(pair, []), *lesions.pop(pair, [])):
            left_out[name] = "left out: each side has a mask of its own"
    for structure, names in organs.items():
        if len(names) > 1:
            called = " and ".join(structure)
            why = f"left out: {len(names)} masks are called after {called}: {', '.join(names)}"
            left_out.update(dict.fromkeys(names, why))
        else:
            masks.update(dict.fromkeys([*names, *lesions.pop(structure, [])], structure))
    # A preset knows such masks (cysts of a kidney that has none): nothing is in doubt.
    for structure, names in lesions.items() if preset is None else ():
        why = f"left out: a part of {' and '.join(structure)}, without the rest"
        left_out.update(dict.fromkeys(names, why))
    return NamedMasks(masks, left_out)


def _of_preset(name: str, preset: Mapping[str, Structure]) -> tuple[Structure, bool]:
    """The structure, and whether it is a lesion of it."""
    known = {plain_name(key): key for key in preset}
    key = name if name in preset else known.get(plain_name(name))
    if key is None:
        return (), False
    structure = preset[key]
    return structure, key != next(k for k, v in preset.items() if v == structure)


def _of_name(name: str, scheme: OrganScheme) -> tuple[Structure, bool]:
    if is_lesion(name):
        return structure_of(without_lesion(name), scheme), True
    return structure_of(name, scheme), False
