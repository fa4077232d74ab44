"""Serves the flows of one machine: runs started from the Prefect UI or by schedule happen here.

    python -m atlas_flows.serve [pacs | others]

A runner rather than a work pool: on one machine there is nothing to choose between pools, and this
is one process that registers the deployments, polls for runs and starts each in its own process.
Several machines use a work pool with the same flow (`deploy/helm`). `pacs` serves the flows that
open the vault, and belongs where the vault is; `others` leaves these out.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from threading import Thread

from atlas_core.catalog import Catalog
from atlas_core.errors import AtlasError
from atlas_core.store import CaseStore

from atlas_flows.event_delivery import deliver_forever
from atlas_flows.loop_metrics import serve_loop_metrics
from atlas_flows.models import reconcile_at_start
from atlas_flows.settings import Places


def require_places(places: Places) -> None:
    """Refuse to start where no run could succeed: better here, at once, than in every run.

    Raises:
        ConfigurationError: the store cannot be written to, or the catalog is of another version.
        Unavailable: the catalog or the Prefect server does not answer.
    """
    CaseStore(places.store).require_usable()
    Catalog.open(places.catalog_url).close()
    places.require_prefect()


def main(arguments: Sequence[str]) -> int:
    """Serve until stopped by a signal; exit status."""
    part = " ".join(arguments)
    if part not in ("", "pacs", "others"):
        sys.stderr.write(f"{__doc__}\n")
        return 2
    places = Places.read()
    require_places(places)
    if part != "pacs":
        reconcile_at_start(places)
    places.embedded.make_home()  # Prefect makes its own folder in it, but none above that
    places.enter_prefect()
    # Prefect reads its settings when it is imported, so only now.
    from prefect import serve

    from atlas_flows.runs.crashed_runs import requeue_claimed_runs
    from atlas_flows.work_pools import PACS, deployed_flows

    if part != "pacs":
        _care_for_the_loop(places)
    flows = [
        one for one in deployed_flows(places) if part != ("others" if one.pool == PACS else "pacs")
    ]
    requeue_claimed_runs(one.flow.name for one in flows)
    serve(
        *(one.deployment() for one in flows),
        # Each flow as often as it may run at once.
        limit=sum(one.limit for one in flows),
        # A stack that is stopped for the night goes on with its schedule in the morning.
        pause_on_shutdown=False,
        print_starting_message=False,
    )
    return 0


def _care_for_the_loop(places: Places) -> None:
    """What one process of a site does beside serving flows."""
    from atlas_flows.loop.automations import notify

    notify(places.notification_block)
    # It keeps nothing that is not in the catalog, so it may end with the process, whenever that is.
    catalog = Catalog.open(places.catalog_url)
    Thread(target=deliver_forever, args=(catalog,), daemon=True).start()
    serve_loop_metrics(places, catalog)


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except AtlasError as error:
        sys.exit(f"error: {error}")
