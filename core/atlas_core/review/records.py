"""Records of review: tasks of the queue, verdicts, label versions, the audit log (§3.2 ⑤).

`atlas_core.review.queue` and `atlas_core.review.label_versions` store and find them.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Annotated, Any, Final

from pydantic import Field

from atlas_core.frozen_model import FrozenModel
from atlas_core.model_spec import ModelRef, Sha256
from atlas_core.organs import OrganName
from atlas_core.records import CaseId, DatasetName, LabelSource, RankBy, Reading

USER_NAME = r"^[A-Za-z0-9][A-Za-z0-9._@+-]{0,99}$"

UserName = Annotated[str, Field(pattern=USER_NAME)]

MINUTES_PER_CASE = 15
"""Annotation time per case in the paper (§4.2)."""

TOP_SHARE = 0.05
"""Share of the cases that are revised in the paper (§4.2)."""


PROPOSAL_PREFIX: Final = "proposal-"
"""Of the ids of label versions that are no labels."""


@dataclass(frozen=True)
class Annotator:
    """An annotator.

    Attributes:
        name: unique.
        second_reader: may take cases that another annotator was unsure of, and reopen finished
            ones; so may change labels also of a case that they do not hold.
    """

    name: str
    second_reader: bool = False


class TaskState(StrEnum):
    """State of a task."""

    OPEN = "open"
    LEASED = "leased"
    """Being worked on: open or in second reading, with a lease that has not expired."""
    SECOND_READING = "second_reading"
    """Waits for somebody other than the first reader."""
    REVISED = "revised"
    CONFIRMED = "confirmed"
    """No revision needed."""
    SKIPPED = "skipped"


PENDING = (TaskState.OPEN, TaskState.SECOND_READING)
FINISHED = (TaskState.REVISED, TaskState.CONFIRMED, TaskState.SKIPPED)


class Verdict(StrEnum):
    """Judgement of an annotator on one organ of a case."""

    CONFIRMED = "confirmed"
    NEEDS_REVISION = "needs_revision"


class TaskOrgan(FrozenModel):
    """One organ of a task."""

    organ: OrganName
    attention_ml: float
    disagreement: float | None = Field(
        default=None, description="None: all models agree that it is absent, or it was not counted."
    )
    weight: float = Field(
        default=0.0, description="What it added to the case's place, in the list's own unit."
    )
    verdict: Verdict | None = None
    error_type: str | None = None
    note: str = ""


class Task(FrozenModel):
    """One case that was queued for revision."""

    id: int
    case_id: CaseId
    dataset: DatasetName
    reading: Reading
    ensemble: str
    rank: int = Field(ge=1, description="In the priority list when the task was opened.")
    ranked_by: RankBy = Field(description="What that list was sorted by.")
    disagreement: float | None = Field(default=None, description="None: it was not counted.")
    attention_ml: float
    state: TaskState
    assignee: str | None = Field(
        default=None, description="Who holds it, or who finished it; None while it waits."
    )
    lease_expires_at: datetime | None = Field(
        default=None, description="Of a lease that has not ended."
    )
    second_reader: bool = Field(description="It waits for, or is with, a second reader.")
    organs: tuple[TaskOrgan, ...] = Field(description="Largest weight first.")
    updated_at: datetime

    @property
    def without_verdict(self) -> tuple[str, ...]:
        """Organs without a verdict."""
        return tuple(one.organ for one in self.organs if one.verdict is None)


class TaskCounts(FrozenModel):
    """Tasks by state."""

    open: int = 0
    leased: int = 0
    second_reading: int = 0
    revised: int = 0
    confirmed: int = 0
    skipped: int = 0


class OpenedTasks(FrozenModel):
    """Result of opening tasks."""

    created: int
    already: int = Field(description="Cases of that part of the list that had a task before.")
    tasks: tuple[int, ...] = Field(description="Ids of the new tasks, by rank.")


class AuditEntry(FrozenModel):
    """One entry of the audit log."""

    at: datetime
    who: str
    action: str
    case_id: str | None = None
    task_id: int | None = None
    detail: dict[str, Any] = Field(default_factory=dict)


class LabelVersion(FrozenModel):
    """One label of one organ of one case, with its provenance. Immutable."""

    id: str = Field(description="Of a label, or ``proposal-N`` for a submission that is none.")
    case_id: CaseId
    organ: OrganName
    source: LabelSource
    path: str = Field(description="File in the case store.")
    value: int = Field(description="Voxel value that means this organ in that file.")
    sha256: Sha256 = Field(description="Of the file's bytes.")
    voxels: int
    volume_ml: float
    author: str | None = None
    models: tuple[ModelRef, ...] = ()
    created_at: datetime
    base: str | None = Field(default=None, description="Version that it was made from.")
    in_force: bool = Field(description="It is the one that assembly takes.")

    @property
    def is_proposal(self) -> bool:
        """Whether it was handed in and never came into force."""
        return self.id.startswith(PROPOSAL_PREFIX)


@dataclass(frozen=True)
class Submission:
    """A mask that is in the store and not yet on record.

    Attributes:
        case_id, organ: what it segments.
        path, sha256: its file in the case store, shared with no other label.
        voxels, volume_ml: its size.
        author: who drew it.
        base: id of the version that it was made from, or `NO_BASE`.
        task_id: the task that it was drawn for, if any.
    """

    case_id: str
    organ: str
    path: str
    sha256: str
    voxels: int
    volume_ml: float
    author: Annotator
    base: str
    task_id: int | None = None


class Draft(FrozenModel):
    """Unfinished drawing of one annotator for one task."""

    task_id: int
    author: str
    path: str
    sha256: Sha256
    base: dict[str, str]
    saved_at: datetime


class WorkDay(FrozenModel):
    """Work of one annotator on one day (UTC)."""

    day: str
    tasks: int
    seconds: float


class Throughput(FrozenModel):
    """Work of one annotator."""

    annotator: str
    tasks: int
    seconds: float
    by_day: tuple[WorkDay, ...]
