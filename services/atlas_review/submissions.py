"""The submission of a mask: first its file, then its row. Both APIs submit through here."""

from __future__ import annotations

from dataclasses import dataclass

from atlas_core.imaging import Volume
from atlas_core.records import Case
from atlas_core.review import (
    Annotator,
    KeptAsProposal,
    LabelVersion,
    LabelVersions,
    Submission,
)
from atlas_core.store import CaseStore


@dataclass(frozen=True)
class MaskSubmission:
    """A mask that has been checked, and the version that it was made from.

    Attributes:
        case, organ: what it shows.
        mask: uint8 ``[i, j, k]``, 0 and 1, on the CT's grid.
        author: who drew it.
        base: id of the version that it was made from, or `atlas_core.review.NO_BASE`.
        task_id: the task that it belongs to, if any.
    """

    case: Case
    organ: str
    mask: Volume
    author: Annotator
    base: str
    task_id: int | None = None


def submit_mask(
    store: CaseStore, versions: LabelVersions, submission: MaskSubmission
) -> LabelVersion:
    """Store a mask, then put it on record. A crash between the two leaves a file without a row,
    which nobody reads.

    Returns:
        The new version, or, if it is the mask in force, that one.

    Raises:
        NotHeld, StaleBase: the mask is kept as a proposal.
        InvalidInput, LimitExceeded, NotFound: as `LabelVersions.submit`; nothing is kept.
    """
    case, mask = submission.case, submission.mask
    stored = store.write_submission(case.id, submission.organ, mask)
    voxels = int(mask.voxels.sum())
    row = Submission(
        case_id=case.id,
        organ=submission.organ,
        path=stored.path,
        sha256=stored.sha256,
        voxels=voxels,
        volume_ml=voxels * case.geometry.voxel_ml,
        author=submission.author,
        base=submission.base,
        task_id=submission.task_id,
    )
    try:
        version = versions.submit(row)
    except KeptAsProposal as error:
        if error.submitted.path != stored.path:  # this very mask was a proposal already
            store.remove(stored.path)
        raise
    except BaseException:
        store.remove(stored.path)
        raise
    if version.path != stored.path:  # this very mask was on record already
        store.remove(stored.path)
    return version
