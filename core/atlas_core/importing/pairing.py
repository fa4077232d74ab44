"""Which label belongs to which CT: by a list, by dataset.json, by BIDS, by the names of files."""

from __future__ import annotations

import contextlib
import csv
import io
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from atlas_core.dicom import references_of
from atlas_core.errors import AtlasError, InvalidInput
from atlas_core.imaging.dicom_reader import DicomSeries
from atlas_core.importing.candidates import stem_of
from atlas_core.importing.label_names import ROOT_NAME, read_json
from atlas_core.regular_files import read_small

MAX_LIST_BYTES: Final = 1 << 24
"""Of a list of pairs or a dataset.json: a hundred thousand lines."""

LABELS_FOLDER: Final = re.compile(
    r"(tcia_\w+_)?(labels?|masks?|segmentations?|gt|groundtruth)[\w-]*", re.IGNORECASE
)

PAIRS: Final = (
    (
        re.compile(r"volume-(\d+)", re.IGNORECASE),
        ("segmentation-{0}", "labels-{0}"),
    ),  # LiTS, CT-ORG
    (re.compile(r"img(\d+)", re.IGNORECASE), ("label{0}",)),  # BTCV
    (re.compile(r"pancreas_?(\d+)", re.IGNORECASE), ("label{0}",)),  # Pancreas-CT
    (re.compile(r"(.+)_0000"), ("{0}",)),  # AbdomenCT-1K, FLARE
)
"""Name of a CT → names of its label map, in the same folder or in a folder of labels beside it."""

OBJECTS: Final = ("SEG", "RTSTRUCT")
"""Modalities of DICOM objects with labels."""

BIDS_LABEL: Final = re.compile(r"(?P<entities>sub-[^_]+(_[a-z]+-[^_]+)*)_(?P<kind>dseg|mask)", re.I)
BIDS_OWN: Final = ("desc", "label", "seg", "space", "res")
"""Entities of a derivative that its source does not have."""


Stems = Mapping[str, Path]
"""Volumes of one folder by their names in small letters, without suffix."""


@dataclass(frozen=True)
class Labels:
    """Label files of one CT.

    Attributes:
        masks: name of a structure → its mask.
        label_map: all structures in one file.
        label_names: file that says what the label map's values mean.
    """

    masks: Mapping[str, Path] = field(default_factory=dict)
    label_map: Path | None = None
    label_names: Path | None = None


def read_pairs(file: Path, root: Path) -> dict[Path, Path | None]:
    """A list of pairs: CSV with a CT and its label in each line, by comma, semicolon or tab.

    Names are relative to the list's own folder or to `root`, and lie in `root`. A first line
    without names of files is a heading. A CT without a label has an empty second field.

    Raises:
        NotFound, LimitExceeded: as `read_small`.
        InvalidInput: a file that is not there, with the line; a CT that stands there twice.
    """
    text = _text(read_small(file, MAX_LIST_BYTES), file.name)
    delimiter = max(",;\t", key=text.partition("\n")[0].count)
    pairs: dict[Path, Path | None] = {}
    reader = csv.reader(io.StringIO(text), delimiter=delimiter)
    for row in reader:
        fields = [cell.strip() for cell in row]
        if not any(fields) or (reader.line_num == 1 and not _is_row(fields, file, root)):
            continue
        ct, *others = (
            _inside(cell, file, root, reader.line_num) if cell else None for cell in fields
        )
        if ct is None or ct in pairs:
            what = "names no CT" if ct is None else "names a CT that an earlier line names"
            raise InvalidInput(
                f"line {reader.line_num} {what}", case=file.name, remedy="correct that line"
            )
        pairs[ct] = others[0] if others else None
    if not pairs:
        raise InvalidInput(
            "the list of pairs is empty",
            case=file.name,
            expected="ct,label",
            remedy="write a line for each CT",
        )
    return pairs


def _text(content: bytes, name: str) -> str:
    for encoding in ("utf-16",) if content[:2] in (b"\xff\xfe", b"\xfe\xff") else ("utf-8-sig",):
        with contextlib.suppress(UnicodeDecodeError):
            return content.decode(encoding)
    raise InvalidInput("the list of pairs is no text", case=name, remedy="save it as UTF-8")


def _is_row(fields: list[str], file: Path, root: Path) -> bool:
    return any((base / fields[0]).exists() for base in (file.parent, root)) or "." in fields[0]


def _inside(cell: str, file: Path, root: Path, line: int) -> Path:
    """The file or folder that a cell names."""
    for base in (root, file.parent):
        path = base / cell.replace("\\", "/")
        if path.exists() and path.resolve().is_relative_to(root.resolve()):
            return root / path.resolve().relative_to(root.resolve())
    raise InvalidInput(
        f"line {line} names a file that is not there",
        case=file.name,
        expected="a path in the folder that is imported",
        got=cell,
        remedy="correct that line",
    )


def pairs_of_dataset(folder: Path) -> dict[Path, Path]:
    """CT → label by the paths in ``dataset.json``, as the Decathlon and nnU-Net write them.

    Only files that are there; a dataset.json that cannot be read says nothing here.
    """
    try:
        content = read_json(read_small(folder / ROOT_NAME, MAX_LIST_BYTES), ROOT_NAME)
    except AtlasError:
        return {}
    found = {}
    for image, label in _listed(content):
        with contextlib.suppress(ValueError, OSError):  # a path that no file can have
            ct, mask = folder / image, folder / label
            inside = all(path.resolve().is_relative_to(folder.resolve()) for path in (ct, mask))
            if inside and ct.is_file() and mask.is_file():
                found[ct] = mask
    return found


def _listed(content: Any) -> Iterator[tuple[str, str]]:
    if not isinstance(content, dict):
        return
    rows: list[Any] = []
    for key in ("training", "validation", "dataset"):
        listed = content.get(key)
        rows += listed if isinstance(listed, list) else []
        rows += listed.values() if isinstance(listed, dict) else []
    for row in rows:
        if isinstance(row, dict):
            image = row.get("image", row.get("images"))
            image = image[0] if isinstance(image, list) and len(image) == 1 else image
            if isinstance(image, str) and isinstance(row.get("label"), str):
                yield image, row["label"]


def bids_labels(derivatives: Path) -> dict[str, Labels]:
    """Labels below ``derivatives`` of a BIDS dataset, by entities of their CT (sub-01_ses-2)."""
    found: dict[str, Labels] = {}
    for file in sorted(derivatives.rglob("sub-*")):
        match = BIDS_LABEL.fullmatch(stem_of(file) or "")
        if match is None:
            continue
        key = bids_key(match["entities"])
        before = found.get(key, Labels())
        if match["kind"].lower() == "dseg":
            table = file.with_name(f"{stem_of(file)}.tsv")
            found[key] = Labels(before.masks, file, table if table.is_file() else None)
        else:
            entities = dict(part.split("-", 1) for part in match["entities"].split("_"))
            name = entities.get("label") or entities.get("desc") or "mask"
            masks = {**before.masks, name: file}
            found[key] = Labels(masks, before.label_map, before.label_names)
    return found


def bids_key(stem: str) -> str:
    """What a BIDS file shares with its derivatives: "sub-1_ses-2_acq-thin_ct" → those entities."""
    parts = [part for part in stem.split("_") if "-" in part]
    return "_".join(part for part in parts if part.split("-", 1)[0] not in BIDS_OWN)


def objects_of_series(
    found: Iterable[DicomSeries], put_aside: Callable[[Path, str], None]
) -> dict[str, tuple[Path, ...]]:
    """DICOM SEG and RTSTRUCT by the CT series that they were made on.

    That is the series that they name; or, where they name none that is here, the only one in their
    frame of reference.

    Args:
        put_aside: called with objects that belong to no series, and the reason.

    Returns:
        `DicomSeries.uid` → its objects.
    """
    series = list(found)
    cts = {one.uid for one in series if one.reason is None}
    in_frame: dict[str, set[str]] = {}
    for one in series:
        if one.reason is None and one.frame is not None:
            in_frame.setdefault(one.frame, set()).add(one.uid)
    objects: dict[str, list[Path]] = {}
    for file in (f for one in series if one.modality in OBJECTS for f in one.files):
        try:
            refers = references_of(file)
        except AtlasError as error:
            put_aside(file, str(error))
            continue
        beside = cts & refers.series
        beside = beside or {uid for frame in refers.frames for uid in in_frame.get(frame, ())}
        if len(beside) == 1:
            objects.setdefault(beside.pop(), []).append(file)
        else:
            where = "several series here" if beside else "a series that is not here"
            put_aside(file, f"labels in DICOM, of {where}: see --pairs")
    return {uid: tuple(files) for uid, files in objects.items()}


def label_folders(folder: Path) -> list[Path]:
    """Folders of labels beside `folder`; none beside one of them."""
    if LABELS_FOLDER.fullmatch(folder.name):
        return []
    with contextlib.suppress(OSError):  # `folder` may be read, the one above it not
        return [
            inner
            for inner in sorted(folder.parent.iterdir())
            if inner != folder and LABELS_FOLDER.fullmatch(inner.name) and inner.is_dir()
        ]
    return []


def label_beside(stem: str, here: Stems, beside: list[Stems]) -> Path | None:
    """The label map that belongs to a loose CT called `stem` by its name.

    Args:
        here, beside: volumes in its own folder, and in folders of labels beside that.
    """
    for pattern, names in PAIRS:
        if (match := pattern.fullmatch(stem)) is not None:
            wanted = [name.format(*match.groups()).lower() for name in names]
            return _first([here, *beside], wanted)
    return _first(beside, [stem.lower()])


def _first(folders: list[Stems], stems: list[str]) -> Path | None:
    return next((found[stem] for found in folders for stem in stems if stem in found), None)
