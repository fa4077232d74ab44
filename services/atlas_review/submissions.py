"""The hand-in of a mask: first the file, then its row."""

from __future__ import annotations

from dataclasses import dataclass

from atlas_core.imaging import Volume
from atlas_core.records import Case
from atlas_core.review import LabelVersion, StaleBase, Submission

from atlas_review.service import Review


@dataclass(frozen=True)
class MaskSubmission:
    """A checked mask, and what it is made from.

    Attributes:
        case, organ: what it is of.
        mask: uint8 ``[i, j, k]``, 0 and 1, on the CT's grid.
        author: who drew it.
        base: version that it was made from.
        task_id: in whose course, if any.
    """

    case: Case
    organ: str
    mask: Volume
    author: str
    base: str
    task_id: int | None = None


def submit_mask(review: Review, handed_in: MaskSubmission) -> LabelVersion:
    """Store a mask and put it on record: first the file, then the row.

    Raises:
        StaleBase: its base is not the latest version; it is kept.
        InvalidInput, NotFound: as `LabelVersions.submit`; nothing is kept.
    """
    case, mask = handed_in.case, handed_in.mask
    stored = review.store.write_submission(case.id, handed_in.organ, mask)
    voxels = int(mask.voxels.sum())
    submission = Submission(
        case_id=case.id,
        organ=handed_in.organ,
        path=stored.path,
        sha256=stored.sha256,
        voxels=voxels,
        volume_ml=voxels * case.geometry.voxel_ml,
        author=handed_in.author,
        base=handed_in.base,
        task_id=handed_in.task_id,
    )
    try:
        version = review.versions.submit(submission)
    except StaleBase:
        raise
    except BaseException:
        review.store.remove(stored.path)
        raise
    if version.path != stored.path:  # the same mask was there already
        review.store.remove(stored.path)
    return version
