"""Labels out of a DICOM SEG or RTSTRUCT: its segments as masks on the CT's grid, with a meaning.

A segment is an organ by its code, by its name, or by both if they agree. What they leave open is
left out and said.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np

from atlas_core.dicom import Segment, open_labels, organs_of
from atlas_core.geometry import VolumeGeometry
from atlas_core.imaging import write_volume
from atlas_core.importing.class_names import is_lesion
from atlas_core.importing.label_names import named_masks
from atlas_core.importing.original_labels import LabelFiles, Reports
from atlas_core.importing.presets import LabelMap, structure_of
from atlas_core.importing.summary import NAMES_SHOWN
from atlas_core.organs import OrganScheme


def dicom_label_files(
    file: Path,
    grid: VolumeGeometry,
    frame: str | None,
    scheme: OrganScheme,
    reports: Reports,
    scratch: Path,
) -> LabelFiles:
    """The segments of `file` that mean an organ, as masks in `scratch`, and what they mean.

    Args:
        grid: of the CT.
        frame: the CT's frame of reference; None if it has none (NIfTI).

    Raises:
        AtlasError: the object cannot be read, or does not lie on its CT.
    """
    found = open_labels(file)
    found.require_frame(frame)
    if frame is None:
        reports.warn(file, "placed by its geometry alone: its CT has no frame of reference")
    segments, open_ones = _by_key(found.segments, scheme)
    names = named_masks(segments, None, scheme)
    for key, why in {**names.left_out, **open_ones}.items():
        reports.warn(file, f"segment {key}: {why}")
    masks = {}
    for key in names.masks:
        masks[key] = scratch / f"segment-{secrets.token_hex(8)}.nii.gz"
        write_volume(masks[key], found.mask(segments[key], grid).astype(np.uint8), grid)
    if unknown := sorted(set(segments) - set(names.masks) - set(names.left_out)):
        shown = ", ".join(unknown[:NAMES_SHOWN]) + (" …" if len(unknown) > NAMES_SHOWN else "")
        reports.warn(file, f"segments that are no organ of this atlas were left out: {shown}")
    return LabelFiles(masks, None, LabelMap(labels={}, masks=dict(names.masks)))


def reports_of(file: Path, reports: Reports) -> Reports:
    """`reports`, which name `file` instead of a mask that was made of it."""
    return Reports(
        lambda _, why: reports.refuse(file, why),
        lambda _, why: reports.leave_out(file, why),
        lambda _, why: reports.warn(file, why),
    )


def _by_key(
    segments: Iterable[Segment], scheme: OrganScheme
) -> tuple[Mapping[str, Segment], Mapping[str, str]]:
    """Segments by a name that says what they are; names that leave it open, and why."""
    keys: dict[str, Segment] = {}
    left_out: dict[str, str] = {}
    for segment in segments:
        key = _key(segment, scheme)
        if key is None:
            meaning = segment.concept.get("CodeMeaning") if segment.concept is not None else None
            left_out[segment.name] = f"left out: its code ({meaning}) and its name do not agree"
            continue
        while key in keys:  # names that differ by a dot are compared as equal
            key += "."
        keys[key] = segment
    return keys, left_out


def _key(segment: Segment, scheme: OrganScheme) -> str | None:
    """What to call a segment by; None where code and name leave open what it is."""
    coded = organs_of(segment.concept, scheme) if segment.concept is not None else None
    named = structure_of(segment.name, scheme)
    if coded is None or is_lesion(segment.name):
        return segment.name
    if not coded:
        # Of something else by its code: an organ by its name only if that has no code of its own.
        return None if any(scheme[name].snomed for name in named) else segment.name
    meant = [organ.name for organ in coded if not named or organ.name in named]
    if len(meant) == 1:
        return meant[0]
    return segment.name if named and meant else None
