"""What tests do in processes of their own: spawned, because a test run has threads (gRPC's among
them) that no fork survives, and therefore in a module that a child can import."""

from __future__ import annotations

import contextlib
import multiprocessing
import signal
from collections.abc import Callable, Sequence
from multiprocessing.context import SpawnProcess
from multiprocessing.queues import Queue
from multiprocessing.synchronize import Barrier, Event
from pathlib import Path

from atlas_core.catalog import Catalog
from atlas_core.errors import NotFound
from atlas_core.importing import ImportSummary, import_folder
from atlas_core.importing.summary import ImportProgress
from atlas_core.records import Case, Dataset, Reading
from atlas_core.store import CaseStore

SPAWN = multiprocessing.get_context("spawn")

PATIENCE_S = 240
"""For several children to come up and to end: each imports everything anew, on a busy machine."""

Where = tuple[str, Reading, str]
"""Of a prediction: case, reading, ensemble."""


def start(work: Callable[..., None], *arguments: object) -> SpawnProcess:
    """A process that does `work`."""
    process = SPAWN.Process(target=work, args=arguments)
    process.start()
    return process


def open_and_add(url: str, cases: Sequence[Case], together: Barrier) -> None:
    """Open a catalog at the same moment as others, and add `cases`."""
    together.wait(timeout=PATIENCE_S)
    with Catalog.open(url) as catalog:
        catalog.add_dataset(Dataset(name="lits"))
        for case in cases:
            catalog.add_case(case)


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


def publish(
    root: Path, where: Where, number: int, together: Barrier, results: Queue[tuple[int, bool]]
) -> None:
    """Publish a prediction at the same moment as others, and tell whether it was this one."""
    with CaseStore(root).new_prediction(*where) as draft:
        draft.result_path.write_text(str(number))
        draft.pseudo_label_path.write_text(str(number))
        together.wait(timeout=PATIENCE_S)
    results.put((number, draft.published))


def write_and_hang(root: Path, where: Where, ready: Event) -> None:
    """Write half a prediction and wait for ever."""
    with CaseStore(root).new_prediction(*where) as draft:
        draft.result_path.write_text("half")
        ready.set()
        signal.pause()


def import_in_little_memory(
    folder: Path, url: str, root: Path, results: Queue[tuple[ImportSummary, int]]
) -> None:
    """Import `folder`, and tell how far the memory of this process rose (MiB)."""
    with Catalog.open(url) as catalog:
        store = CaseStore(root)
        with contextlib.suppress(NotFound):
            import_folder(root.parent / "nothing", "site", catalog=catalog, store=store)
        before = _peak_mib()
        summary = import_folder(folder, "site", "kits", catalog=catalog, store=store)
    results.put((summary, _peak_mib() - before))


def _peak_mib() -> int:
    """The most memory that this process has held; `getrusage` counts its parent's too."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) // 1024
