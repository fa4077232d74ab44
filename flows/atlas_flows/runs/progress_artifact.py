"""Progress of a run over cases: in its log, for an observer in this process, in the Prefect UI."""

# No `from __future__ import annotations` here: see `atlas_flows.scoring.flow`.

import threading
from contextvars import copy_context
from typing import Self, cast
from uuid import UUID

import httpx
from prefect import get_run_logger
from prefect.artifacts import create_progress_artifact, update_progress_artifact
from prefect.exceptions import PrefectException

from atlas_flows.runs.case_outcomes import CaseOutcome, current_observer

PROGRESS_EVERY_S = 2.0
"""Time between two updates of the progress artifact: an update is a request to the server."""

PROGRESS_LAST_S = 10.0
"""How long the end of a run waits for its last update."""


class ProgressArtifact:
    """Reports progress to the run's log, to the observer of this process, and as an artifact.

    A context manager. A thread of its own updates the artifact, so that a server that is slow or
    does not answer never slows down the work.
    """

    def __init__(self, total: int, key: str, description: str) -> None:
        created = create_progress_artifact(
            0.0 if total else 100.0, key=key, description=description
        )
        self._artifact = cast(UUID, created)  # a coroutine only where the caller is one
        self._log = get_run_logger()
        self._observer = current_observer()
        self._percent = 0.0
        self._ended = threading.Event()
        # In a copy of our context, where Prefect keeps its settings and the run. Not waited for by
        # the interpreter: Prefect's client tries for a minute to reach a server.
        self._thread = threading.Thread(
            target=copy_context().run, args=(self._keep_showing,), daemon=True
        )

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join(timeout=PROGRESS_LAST_S)

    def __call__(self, done: int, total: int, outcome: CaseOutcome) -> None:
        if outcome.good:
            self._log.info("%s %s in %.1f s", outcome.case_id, outcome.outcome, outcome.seconds)
        else:
            self._log.error("%s %s: %s", outcome.case_id, outcome.outcome, outcome.message)
        if self._observer is not None:
            self._observer(done, total, outcome)
        self.show(done, total)

    def show(self, done: int, total: int) -> None:
        """Progress of a run that has no outcome per case."""
        self._percent = 100.0 * done / total

    def _keep_showing(self) -> None:
        shown = 0.0
        ended = False
        while not ended:
            ended = self._ended.wait(PROGRESS_EVERY_S)
            percent = self._percent
            if percent != shown:
                try:
                    update_progress_artifact(self._artifact, progress=percent)
                except (httpx.HTTPError, PrefectException) as error:
                    self._log.warning("progress could not be shown: %s", type(error).__name__)
                    return
                shown = percent
