"""Runs a flow in the process of its command, in view of the Prefect server."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from atlas_core.errors import InvalidInput, Unavailable

if TYPE_CHECKING:
    from atlas_flows.settings import Places


@contextmanager
def run_here(here: Places, flow: str, kept: str = "") -> Iterator[None]:
    """The block runs the flow of the name `flow`. Prefect, and what imports it, may be imported in
    the block and not before: it reads its settings when it is imported.

    Args:
        kept: what is not lost if the server stops answering.

    Raises:
        Unavailable: no Prefect server, or it stopped answering.
        InvalidInput: a parameter that the flow does not take.
    """
    here.enter_prefect(quiet=True)
    here.require_prefect()
    import httpx
    from prefect import tags
    from prefect.exceptions import ParameterTypeError
    from prefect.logging.handlers import APILogHandler

    from atlas_flows.runs.crashed_runs import mark_interrupted_runs, process_tag

    try:
        mark_interrupted_runs(flow)
        with tags(process_tag()):
            yield
        # What the caller may do next is to stop the server; half of the log would not get there.
        APILogHandler().flush()
    except ParameterTypeError as error:
        _, *wrong = str(error).splitlines()
        raise InvalidInput(
            f"flow {flow} does not take this", got="; ".join(line.strip(" -") for line in wrong)
        ) from None
    except httpx.HTTPError as error:
        raise Unavailable(
            "the Prefect server went away during the run",
            got=type(error).__name__,
            remedy="run again after `atlasloop up`" + (f": {kept}" if kept else ""),
        ) from None
