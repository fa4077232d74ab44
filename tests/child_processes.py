"""What tests do in processes of their own: spawned, because a test run has threads (gRPC's among
them) that no fork survives, and therefore in a module that a child can import."""

from __future__ import annotations

import hashlib
import multiprocessing
import signal
from collections.abc import Callable
from datetime import UTC, datetime
from multiprocessing.context import SpawnProcess
from multiprocessing.queues import Queue
from multiprocessing.synchronize import Barrier, Event
from pathlib import Path

from atlas_core.case_store import CaseStore
from atlas_core.catalog import Catalog
from atlas_core.importing import ImportProgress, import_folder
from atlas_core.records import Case, Dataset, Reading

SPAWN = multiprocessing.get_context("spawn")

PATIENCE_S = 240
"""For several children to come up and to end: each imports everything anew, on a busy machine."""

STORED = ("lits_0123456789ab", Reading.PAPER, "nnunet@0-1a2b3c4d+unet@0-99887766")
"""Case, reading and ensemble of the prediction that children write."""


def start(work: Callable[..., None], *arguments: object) -> SpawnProcess:
    """A process that does `work`."""
    process = SPAWN.Process(target=work, args=arguments)
    process.start()
    return process


def open_and_add(url: str, number: int, together: Barrier) -> None:
    """Open a catalog at the same moment as others, and add a case of one's own and a shared one."""
    together.wait(timeout=PATIENCE_S)
    with Catalog.open(url) as catalog:
        catalog.add_dataset(Dataset(name="lits"))
        catalog.add_case(_case("shared"))
        catalog.add_case(_case(f"own{number}"))


def _case(name: str) -> Case:
    return Case(
        id=f"lits_{name}",
        dataset="lits",
        content_sha256=hashlib.sha256(name.encode()).hexdigest(),
        shape=(512, 512, 88),
        affine=((1.0, 0.0, 0.0, 0.0), (0.0, 1.0, 0.0, 0.0), (0.0, 0.0, 1.0, 0.0)),
        source=f"volumes/{name}.nii.gz",
        imported_at=datetime(2026, 1, 1, tzinfo=UTC),
    )


def import_all(folder: Path, url: str, root: Path, cases: int) -> None:
    """Import `folder` as others do at once; all `cases` are there afterwards."""
    with Catalog.open(url) as catalog:
        summary = import_folder(folder, "site", catalog=catalog, store=CaseStore(root))
    assert len(summary.taken) + len(summary.present) == cases


def import_until_killed(folder: Path, url: str, root: Path, third: Event) -> None:
    """Import `folder` and wait for ever once the third case is in."""

    def on_progress(progress: ImportProgress) -> None:
        if progress.done == 3:
            third.set()
            signal.pause()

    with Catalog.open(url) as catalog:
        import_folder(
            folder, "site", catalog=catalog, store=CaseStore(root), on_progress=on_progress
        )


def publish(root: Path, number: int, together: Barrier, results: Queue[tuple[int, bool]]) -> None:
    """Publish a prediction at the same moment as others, and tell whether it was this one."""
    with CaseStore(root).new_prediction(*STORED) as draft:
        draft.result_path.write_text(str(number))
        draft.pseudo_label_path.write_text(str(number))
        together.wait(timeout=PATIENCE_S)
    results.put((number, draft.published))


def write_and_hang(root: Path, ready: Event) -> None:
    """Write half a prediction and wait for ever."""
    with CaseStore(root).new_prediction(*STORED) as draft:
        draft.result_path.write_text("half")
        ready.set()
        signal.pause()
