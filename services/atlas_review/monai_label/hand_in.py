"""A label map of several organs from a MONAI Label client becomes one version for each change."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime

import numpy as np
from atlas_core.errors import UnknownLabel
from atlas_core.imaging import Volume, read_label, write_volume
from atlas_core.organs import BACKGROUND
from atlas_core.records import Case
from atlas_core.review import NO_BASE, Annotator, LabelVersion, StaleBase

from atlas_review.api import Received, label_on_grid, on_disk
from atlas_review.service import Review
from atlas_review.submissions import MaskSubmission, submit_mask
from atlas_review.volumes import ServedFile


@dataclass(frozen=True)
class HandIn:
    """What came with a label map.

    Attributes:
        case: whose.
        who: sends it.
        label_info: names of the segments, the k-th being that of voxel value k; None: our organs.
        bases: organ → version that the sender was given; None: unknown, taken as the latest.
        final: it ends the sender's task.
    """

    case: Case
    who: Annotator
    label_info: list[str] | None
    bases: Mapping[str, str] | None
    final: bool


def dense_label_map(review: Review, case: Case) -> ServedFile:
    """The label map in force with voxel value k for the k-th organ."""
    file = review.files.label_map(case)
    organs = review.settings.organs
    if organs.labels == tuple(range(1, len(organs) + 1)):
        return file
    table = np.zeros(256, np.uint8)
    for k, organ in enumerate(organs, start=1):
        table[organ.label] = k
    return review.files.derived(
        case.id,
        "dense.nii.gz",
        [file.sha256],
        lambda path: write_volume(path, table[read_label(file.path).voxels], case.geometry),
    )


def hand_in_map(review: Review, handed_in: HandIn, received: Received) -> dict[str, str]:
    """Check a label map, and hand in each organ in it that differs from the label in force.

    Returns:
        organ → id of its new version.

    Raises:
        InvalidInput: as `label_on_grid`; also a value or a segment that is no organ. Nothing is
            stored.
        StaleBase: an organ was changed by somebody else meanwhile; both labels are kept.
    """
    case = handed_in.case
    with on_disk(review.store, received.content) as path:
        label = label_on_grid(path, case)
    organs = _segments(review, handed_in, label.values)
    stored = review.files.label_masks(case).voxels
    versions = {version.id: version for version in review.versions.versions(case.id)}
    latest = review.versions.latest(case.id)
    held = review.queue.held_by(handed_in.who.name, case.id)
    changed: dict[str, str] = {}
    stale: StaleBase | None = None
    for organ, value in organs.items():
        mask = label.voxels == value
        now = latest.get(organ)
        before = stored == review.settings.organs[organ].label
        if now is not None and np.array_equal(mask, before):
            continue
        submission = MaskSubmission(
            case=case,
            organ=organ,
            mask=Volume(mask.astype(np.uint8), case.geometry),
            author=handed_in.who.name,
            base=_base(handed_in, organ, now, versions),
            task_id=None if held is None else held.id,
        )
        try:
            changed[organ] = submit_mask(review, submission).id
        except StaleBase as error:  # the other organs are handed in all the same
            stale = stale or error
    if stale is not None:
        raise stale
    if held is not None and handed_in.final:
        _finish(review, handed_in.who, held.id, changed)
    return changed


def _segments(review: Review, handed_in: HandIn, values: tuple[int, ...]) -> dict[str, int]:
    """Organ → its voxel value, of every organ that the map speaks of."""
    names = handed_in.label_info or list(review.settings.organs.names)
    unknown = [name for name in names if name not in review.settings.organs]
    if unknown:
        raise UnknownLabel(
            "a segment is no organ of this atlas",
            case=handed_in.case.id,
            expected=f"one of {', '.join(review.settings.organs.names)}",
            got=", ".join(unknown[:4]),
            remedy="remove or rename the segment",
        )
    beyond = [value for value in values if value != BACKGROUND and not 1 <= value <= len(names)]
    if beyond:
        raise UnknownLabel(
            "a voxel value stands for no segment",
            case=handed_in.case.id,
            expected=f"0..{len(names)}, the k-th segment having value k",
            got=", ".join(str(value) for value in beyond[:8]),
        )
    return {name: k for k, name in enumerate(names, start=1)}


def _base(
    handed_in: HandIn,
    organ: str,
    now: LabelVersion | None,
    versions: Mapping[str, LabelVersion],
) -> str:
    """What the organ's mask was made from: what its sender was given, or what he has made of it
    since, as one who hands in twice does."""
    current = now.id if now else NO_BASE
    if handed_in.bases is None:
        return current
    given = handed_in.bases.get(organ, NO_BASE)
    one = now
    while one is not None and one.id != given and one.author == handed_in.who.name:
        one = versions.get(one.base) if one.base else None
    return current if (one.id if one else NO_BASE) == given else given


def _finish(review: Review, who: Annotator, task_id: int, changed: dict[str, str]) -> None:
    history = review.queue.history(task_id)
    began = [one.at for one in history if one.action == "lease" and one.who == who.name]
    seconds = (datetime.now(UTC) - began[-1]).total_seconds() if began else 0.0
    if changed:
        review.queue.revise(task_id, who, seconds, changed)
    else:
        review.queue.confirm(task_id, who, seconds)
