"""Contact sheets rendered in advance, so that a reader who goes through a whole atlas never waits.

One process beside the service, at low priority, renders one sheet after the other. It is not a
thread: rendering would hold the interpreter for whole milliseconds while requests wait. Where
several services share a store, one of them renders.
"""

from __future__ import annotations

import contextlib
import logging
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from typing import IO, Final

from atlas_core.catalog import Catalog
from atlas_core.errors import AtlasError
from atlas_core.json_logs import log_to_stderr
from atlas_core.review import CaseReview, LabelVersions
from atlas_core.store import CaseStore
from filelock import FileLock

from atlas_review.settings import ReviewSettings
from atlas_review.volumes.case_files import CaseFiles

LOW_PRIORITY: Final = 10

LOCK: Final = ".sheets.lock"

_log = logging.getLogger(__name__)


@contextlib.contextmanager
def running_worker(settings: ReviewSettings) -> Iterator[None]:
    """Render until the block ends, in a process that ends with this one, however it ends."""
    if not settings.sheet_interval_s:
        yield
        return
    # Its standard input ends with this process, even after a kill -9; then it stops.
    command = [sys.executable, "-m", "atlas_review.volumes.contact_sheet_worker"]
    with subprocess.Popen(command, stdin=subprocess.PIPE):
        yield


class ContactSheetRenderer:
    """Renders the sheets of cases that have changed since the last round."""

    def __init__(self, catalog: Catalog, store: CaseStore, settings: ReviewSettings) -> None:
        self._catalog = catalog
        self._cases = CaseReview(catalog)
        self._files = CaseFiles(store, catalog, LabelVersions(catalog), self._cases, settings)
        self._rendered: dict[str, str] = {}

    def render_changed(self) -> int:
        """One round; returns for how many cases a sheet was rendered or found."""
        stamps = self._cases.stamps()
        changed = [
            case_id for case_id, stamp in stamps.items() if self._rendered.get(case_id) != stamp
        ]
        done = 0
        for case_id in changed:
            try:
                self._files.contact_sheet(self._catalog.case(case_id))
                done += 1
            except AtlasError as error:  # tried again when the case changes
                _log.warning("no contact sheet: %s", error)
            except Exception:
                _log.exception("fault in a contact sheet")
            self._rendered[case_id] = stamps[case_id]
        return done


def main() -> None:
    """Render until the input ends."""
    settings = ReviewSettings()
    log_to_stderr(settings.log_level)
    threading.Thread(target=_exit_with_input, args=(sys.stdin.buffer,), daemon=True).start()
    os.nice(LOW_PRIORITY)
    store = CaseStore(settings.store)
    with (
        # Waits while another service renders.
        FileLock(store.root / LOCK, poll_interval=settings.sheet_interval_s),
        Catalog.open(settings.catalog_url.get_secret_value()) as catalog,
    ):
        renderer = ContactSheetRenderer(catalog, store, settings)
        while True:
            try:
                renderer.render_changed()
            except AtlasError as error:
                _log.warning("contact sheets wait: %s", error)
            time.sleep(settings.sheet_interval_s)


def _exit_with_input(stdin: IO[bytes]) -> None:
    stdin.read()
    # At once, even in the middle of a sheet: a sheet is renamed into place whole, or never.
    os._exit(0)


if __name__ == "__main__":
    main()
