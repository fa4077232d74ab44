"""The folder of a release: its files are written in parallel, and it appears when all are there.

Nothing here knows Prefect; `atlas_flows.release.flow` is a thin shell around these functions.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from atlas_core.atomic_writes import new_folder, replace_file
from atlas_core.errors import AtlasError, ConfigurationError, Conflict, InvalidInput
from atlas_core.frozen_model import FrozenModel
from atlas_core.release import (
    ReleasePlan,
    Split,
    WrittenFile,
    private_mapping,
    require_writable_as,
    write_case,
    write_tables,
)
from atlas_core.store import CaseStore
from pydantic import Field

from atlas_flows.runs import CaseOutcome, Outcome, ProgressCounter


class ReleaseSummary(FrozenModel):
    """A release that was made."""

    folder: str
    cases: int
    splits: dict[Split, int]
    datasets: dict[str, str] = Field(description="Name → licence.")
    left_out: dict[str, str] = Field(description="Case id → why.")
    files: int
    checksum: str = Field(description="SHA-256 of SHA256SUMS: equal releases have equal ones.")
    seconds: float


@dataclass(frozen=True)
class ReleaseRun:
    """Everything that the shards of one run share. Safe to use from several threads."""

    plan: ReleasePlan
    store: CaseStore
    folder: Path
    progress: ProgressCounter
    stop: threading.Event = field(default_factory=threading.Event)


def write_shard(run: ReleaseRun, numbers: Sequence[str]) -> list[WrittenFile]:
    """Write the cases of these numbers; the first one that cannot be ends the run.

    Raises:
        AtlasError: why a case cannot be released.
    """
    wanted = set(numbers)
    written: list[WrittenFile] = []
    for released in run.plan.cases:
        if released.number not in wanted or run.stop.is_set():
            continue
        try:
            written += write_case(run.folder, released, run.plan, run.store)
        except AtlasError as error:
            run.stop.set()
            raise (error if error.case else error.with_case(released.case.id)) from error
        run.progress.add(CaseOutcome(case_id=released.case.id, outcome=Outcome.RELEASED))
    return written


@contextmanager
def new_release(target: Path, plan: ReleasePlan) -> Iterator[Path]:
    """The folder to write a release into; it becomes `target` when the block ends.

    Raises:
        Conflict: there is something of this name.
        InvalidInput: the format cannot hold the organs' ids.
        ConfigurationError: it cannot be written.
    """
    if target.exists():
        raise Conflict(
            "there is something of this name already", got=target, remedy="name a new folder"
        )
    require_writable_as(plan)
    try:
        with new_folder(target) as folder:
            yield folder
    except OSError as error:
        raise ConfigurationError(
            f"the release cannot be written to {target}",
            got=error.strerror,
            remedy="name a folder on a disk that is writable and has room",
        ) from None


def finish(run: ReleaseRun, cases: Sequence[WrittenFile]) -> tuple[WrittenFile, ...]:
    """The tables, the card and the checksums."""
    return write_tables(run.folder, run.plan, cases)


def require_apart(mapping: Path, target: Path) -> None:
    """Refuse a `mapping` that would be published with the release in `target`.

    Raises:
        InvalidInput: it lies in there.
    """
    if mapping.resolve().is_relative_to(target.resolve()):
        raise InvalidInput(
            "the mapping would lie inside the release",
            expected="a file that is not published",
            got=mapping,
        )


def write_mapping(mapping: Path, plan: ReleasePlan, store: CaseStore) -> None:
    """Which case of this site each case of the release is; for its owner only.

    Raises:
        ConfigurationError: it cannot be written.
    """
    try:
        replace_file(mapping, private_mapping(plan, store).encode(), mode=0o600)
    except OSError as error:
        raise ConfigurationError(
            f"the mapping cannot be written to {mapping}", got=error.strerror
        ) from None
