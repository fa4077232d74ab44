"""Label maps that MONAI Label clients hand in: all organs in one volume.

What a client sends becomes one submission for each organ that it has changed. An organ without a
voxel is no change unless the client says that it emptied it: 3D Slicer's extension sends an empty
segment for every organ of the atlas, drawn or not.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import BinaryIO

import numpy as np
from atlas_core.errors import Conflict, InvalidInput, UnknownLabel
from atlas_core.imaging import Volume
from atlas_core.organs import BACKGROUND
from atlas_core.records import Case
from atlas_core.review import (
    NO_BASE,
    Annotator,
    KeptAsProposal,
    LabelVersion,
    TaskFilter,
    TaskState,
)

from atlas_review.service import Review
from atlas_review.submissions import MaskSubmission, submit_mask
from atlas_review.volumes import Upload, read_upload


@dataclass(frozen=True)
class LabelMapSubmission:
    """A label map that a client has sent; nothing in it is checked yet.

    Attributes:
        case: whose.
        content: the file: NIfTI, NRRD or MetaImage.
        annotator: who sends it.
        segments: names, the k-th being that of voxel value k; None: the organs of the atlas. What
            the file itself says of its segments comes first.
        bases: organ → id of the version that the sender was given; None: not known, taken as the
            latest.
        final: it ends the task that the sender holds.
        emptied: names of the organs that the sender has emptied on purpose.
    """

    case: Case
    content: BinaryIO
    annotator: Annotator
    segments: list[str] | None
    bases: Mapping[str, str] | None
    final: bool
    emptied: tuple[str, ...] = ()


@dataclass(frozen=True)
class HandIn:
    """What came of a label map.

    Attributes:
        versions: organ → id of its new version.
        left_as_it_is: organs that have a label and were sent empty without a word: it stays.
        ended: the task that its sender held is finished.
    """

    versions: dict[str, str]
    left_as_it_is: tuple[str, ...]
    ended: bool


def submit_label_map(review: Review, submission: LabelMapSubmission) -> HandIn:
    """Check a label map, and submit each organ in it that differs from the label in force.

    Raises:
        InvalidInput: as `label_on_grid`; also a value or a segment that is no organ, an organ that
            was emptied and has voxels, or nothing but organs without voxels. Nothing is stored.
        NotHeld, StaleBase: an organ is kept as a proposal, as `LabelVersions.submit` says.
        Conflict: it is meant to end a task that somebody else holds by now, and changes nothing.
    """
    case, annotator = submission.case, submission.annotator
    upload = read_upload(review.store, submission.content, case)
    label = upload.label
    organs = _values_of_organs(review, submission, upload)
    emptied = _emptied(submission, organs, label.values)
    stored = review.files.read_label_map(case).voxels
    versions = {version.id: version for version in review.versions.versions(case.id)}
    latest = review.versions.latest(case.id)
    task = review.client_queue.resume(annotator, TaskFilter(case_id=case.id))
    changed: dict[str, str] = {}
    left: list[str] = []
    proposed: KeptAsProposal | None = None
    for organ, value in organs.items():
        mask = label.voxels == value
        current = latest.get(organ)
        before = stored == review.settings.organs[organ].label
        if current is not None and np.array_equal(mask, before):
            continue
        if value not in label.values and organ not in emptied:
            left += [organ] if before.any() else []
            continue
        organ_submission = MaskSubmission(
            case=case,
            organ=organ,
            mask=Volume(mask.astype(np.uint8), case.geometry),
            author=annotator,
            base=_base(submission, organ, current, versions),
            task_id=None if task is None else task.id,
        )
        try:
            changed[organ] = submit_mask(review.store, review.versions, organ_submission).id
        except KeptAsProposal as error:  # the other organs are submitted all the same
            proposed = proposed or error
    if proposed is not None:
        raise proposed
    if not submission.final:
        return HandIn(changed, tuple(left), ended=False)
    if left and not changed:
        raise _nothing_drawn(case, left)
    if task is not None:
        _end_task(review, annotator, task.id, changed)
    elif not changed:
        _require_not_held_by_another(review, submission)
    return HandIn(changed, tuple(left), ended=task is not None)


def _emptied(
    submission: LabelMapSubmission, organs: Mapping[str, int], values: tuple[int, ...]
) -> frozenset[str]:
    """The organs that were emptied on purpose, of those whose labels the sender was given."""
    unknown = sorted(set(submission.emptied) - set(organs))
    if unknown:
        raise UnknownLabel(
            "what was emptied has no segment",
            case=submission.case.id,
            expected=f"some of {', '.join(organs)}",
            got=", ".join(unknown[:4]),
        )
    drawn = [organ for organ in submission.emptied if organs[organ] in values]
    if drawn:
        raise InvalidInput(
            "an organ is said to be emptied, and has voxels",
            case=submission.case.id,
            got=", ".join(drawn[:4]),
        )
    given = submission.bases
    return frozenset(organ for organ in submission.emptied if given is None or organ in given)


def _nothing_drawn(case: Case, left: list[str]) -> InvalidInput:
    return InvalidInput(
        "no organ was changed, and some are empty: the labels stay, and the case is not finished",
        case=case.id,
        got=f"empty: {', '.join(left)}",
        remedy="run `pseudo_label` and correct what it shows; an organ is emptied on the page, or "
        'by a client that sends {"emptied": ["liver"]}',
    )


def _require_not_held_by_another(review: Review, submission: LabelMapSubmission) -> None:
    wanted = TaskFilter(state=TaskState.LEASED, case_id=submission.case.id)
    _, tasks = review.queue.page(wanted, 0, 1)
    if tasks:
        raise Conflict(
            "the case has gone to somebody else, and is not finished by this",
            case=submission.case.id,
            got=f"held by {tasks[0].assignee}",
            remedy="take the next case",
        )


def _values_of_organs(
    review: Review, submission: LabelMapSubmission, upload: Upload
) -> dict[str, int]:
    """Organ → its voxel value, of every organ that has a segment in the map.

    Segments are recognised however their names are written, as in an import ("Left Kidney"). One
    without a voxel that is no organ, as a client's own "background", says nothing.
    """
    names = submission.segments or list(review.settings.organs.names)
    segments = upload.segments or [(name, k) for k, name in enumerate(names, start=1)]
    values = [value for value in upload.label.values if value != BACKGROUND]
    beyond = sorted(set(values) - {value for _, value in segments})
    found: dict[str, int] = {}
    unknown: list[str] = []
    for name, value in segments:
        meant = review.settings.organs.called(name)
        if len(meant) != 1:
            unknown += [name] if value in values else []
            continue
        organ = meant[0].name
        if organ in found and value in values and found[organ] in values:
            raise UnknownLabel(
                f"two segments are called after the {organ}", case=submission.case.id, got=name
            )
        if found.get(organ) not in values:
            found[organ] = value
    if unknown:
        raise UnknownLabel(
            "a segment is no organ of this atlas",
            case=submission.case.id,
            expected=f"one of {', '.join(review.settings.organs.names)}",
            got=", ".join(unknown[:4]),
            remedy="remove or rename the segment",
        )
    if beyond:
        raise UnknownLabel(
            "a voxel value stands for no segment",
            case=submission.case.id,
            expected=", ".join(str(value) for _, value in segments),
            got=", ".join(str(value) for value in beyond[:8]),
        )
    return found


def _base(
    submission: LabelMapSubmission,
    organ: str,
    current: LabelVersion | None,
    versions: Mapping[str, LabelVersion],
) -> str:
    """The version that the organ's mask was made from: the one that its sender was given, or their
    own later one made from that, as when they submit twice from one download."""
    current_id = current.id if current else NO_BASE
    if submission.bases is None:
        return current_id
    given = submission.bases.get(organ, NO_BASE)
    ancestor = current
    while (
        ancestor is not None
        and ancestor.id != given
        and ancestor.author == submission.annotator.name
    ):
        ancestor = versions.get(ancestor.base) if ancestor.base else None
    return current_id if (ancestor.id if ancestor else NO_BASE) == given else given


def _end_task(review: Review, annotator: Annotator, task_id: int, changed: dict[str, str]) -> None:
    history = review.queue.history(task_id)
    leased_at = [one.at for one in history if one.action == "lease" and one.who == annotator.name]
    seconds = (datetime.now(UTC) - leased_at[-1]).total_seconds() if leased_at else 0.0
    if changed:
        review.queue.revise(task_id, annotator, seconds, changed)
    else:
        review.queue.confirm(task_id, annotator, seconds)
