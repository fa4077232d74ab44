"""Which label files a candidate has, and what they mean: by preset, by names, by our own ids."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Final

from atlas_core.errors import AtlasError, InvalidInput
from atlas_core.imaging import read_segments
from atlas_core.importing.candidates import Candidate, is_segments
from atlas_core.importing.label_names import NamedMap, named_map, named_masks, nnunet_map
from atlas_core.importing.original_labels import LabelFiles, Reports
from atlas_core.importing.presets import LabelMap, scheme_map
from atlas_core.organs import OrganScheme
from atlas_core.regular_files import read_small

MAX_NAMES_BYTES: Final = 1 << 20
"""Of nnU-Net's dataset.json, which lists every case; those of thousands have some 100 kB."""


def label_files(
    candidate: Candidate, known: LabelMap | None, scheme: OrganScheme, reports: Reports
) -> LabelFiles:
    """The candidate's label files and what they mean; what means nothing is reported.

    Args:
        known: what values and masks mean by the dataset's preset, if it has one.
    """
    names = named_masks(candidate.masks, known.masks if known is not None else None, scheme)
    for name, why in names.left_out.items():
        reports.leave_out(candidate.masks[name], why)
    unknown = frozenset(set(candidate.masks) - set(names.masks) - set(names.left_out))
    label_map, meaning = candidate.label_map, known or scheme_map(scheme, ())
    if label_map is not None and known is None:
        named = _named(candidate, label_map, scheme, reports)
        if named is not None:
            meaning = named.meaning
            for note in named.notes:
                reports.warn(label_map, note)
        elif not candidate.our_ids or candidate.label_names is not None:
            label_map = None
    meaning = LabelMap.model_validate({**meaning.model_dump(), "masks": names.masks})
    return LabelFiles(candidate.masks, label_map, meaning, unknown)


def _named(
    candidate: Candidate, label_map: Path, scheme: OrganScheme, reports: Reports
) -> NamedMap | None:
    """The meaning of a label map by the names that a file gives its values; None, reported, if
    there is none."""
    file = candidate.label_names
    if file is None:
        if not candidate.our_ids:
            why = "not taken: nothing says what its values mean; pass --preset"
            reports.leave_out(label_map, why)
        return None
    try:
        if is_segments(file):
            pairs = [(name, (value,)) for name, value in read_segments(file)]
            return named_map(pairs, scheme, partial=True)
        content = read_small(file, MAX_NAMES_BYTES)
        return _table(content, scheme) if file.suffix == ".tsv" else nnunet_map(content, scheme)
    except AtlasError as error:
        reports.refuse(file, str(error))
        if file != label_map:
            reports.leave_out(label_map, f"not taken: {file.name} cannot be read")
        return None


def _table(content: bytes, scheme: OrganScheme) -> NamedMap:
    """BIDS's table of a discrete segmentation: index and name by tabs."""
    try:
        rows = list(csv.DictReader(io.StringIO(content.decode("utf-8-sig")), delimiter="\t"))
        return named_map([(row["name"], (int(row["index"]),)) for row in rows], scheme)
    except (ValueError, KeyError, TypeError, AttributeError, csv.Error):
        raise InvalidInput(
            "no table of label values",
            expected="columns index and name, by tabs",
            remedy="correct it there",
        ) from None
