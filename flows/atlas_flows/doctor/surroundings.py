"""What models and flows stand on: memory, disk, clocks, database, services."""

from __future__ import annotations

import shutil
import urllib.error
import urllib.request
from collections.abc import Iterator
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from pathlib import Path

import sqlalchemy as sa
from atlas_core.catalog import Catalog
from atlas_core.catalog.tables import metadata
from atlas_core.errors import Unavailable
from atlas_core.model_spec import ModelSpec
from atlas_core.store import CaseStore, check_filesystem
from atlas_embedded.loopback import problem_detail
from atlas_embedded.probes import attention_serves

from atlas_flows.doctor.findings import Diagnosis, Finding
from atlas_flows.settings import Places

GIB = 2**30
LEAST_FREE = 5 * GIB
LEAST_SHARE = 0.1
CLOCKS_S = 2.0
"""How far clocks may be apart: leases are given by them."""

SLOW_ROUND_S = 0.05


def shared_memory(folder: Path, specs: list[ModelSpec], windows_in_flight: int) -> Finding:
    """Whether the windows in flight have room: 4 bytes per voxel, and 1 per voxel and organ."""
    needed = windows_in_flight * max(
        (_voxels(spec) * 4 for spec in specs), default=0
    ) + windows_in_flight * sum(_voxels(spec) * len(spec.organs) for spec in specs)
    usage = shutil.disk_usage(folder)
    figures = {"needed_gib": round(needed / GIB, 3), "free_gib": round(usage.free / GIB, 3)}
    said = (
        f"{windows_in_flight} windows in flight need {needed / GIB:.2f} GiB, "
        f"{usage.free / GIB:.2f} of {usage.total / GIB:.2f} GiB are free in {folder}"
    )
    if needed <= usage.free:
        return Finding(check="shared memory", verdict=Diagnosis.GOOD, found=said, figures=figures)
    return Finding(
        check="shared memory",
        verdict=Diagnosis.WRONG,
        found=said,
        figures=figures,
        remedy="enlarge it (docker --shm-size, triton.sharedMemory of the chart), or set "
        "ATLAS_ATTENTION_WINDOWS_IN_FLIGHT lower",
    )


def _voxels(spec: ModelSpec) -> int:
    x, y, z = spec.patch
    return x * y * z


def disk(store: Path) -> Finding:
    """Whether the case store can be written to, and will be tomorrow."""
    CaseStore(store).require_usable()
    usage = shutil.disk_usage(store)
    share = usage.free / usage.total
    said = f"{usage.free / GIB:.1f} GiB free ({share:.0%}) where {store} is"
    figures = {"free_gib": round(usage.free / GIB, 1), "free_share": round(share, 3)}
    if usage.free >= LEAST_FREE and share >= LEAST_SHARE:
        return Finding(check="disk", verdict=Diagnosis.GOOD, found=said, figures=figures)
    return Finding(
        check="disk", verdict=Diagnosis.DOUBTFUL, found=said, figures=figures,
        remedy="enlarge the volume; `du` of cases/*/predictions shows what ensembles that are no "
        "longer compared take",
    )  # fmt: skip


def filesystem(store: Path) -> Finding:
    """Whether the file system under the store has what that needs: renames, fsync, locks."""
    found = check_filesystem(store)
    wrong = [one for one in found if not one.met]
    if not wrong:
        said = f"all {len(found)} requirements are met"
        return Finding(check="file system", verdict=Diagnosis.GOOD, found=said)
    return Finding(
        check="file system", verdict=Diagnosis.WRONG,
        found="; ".join(f"{one.name}: {one.found}" for one in wrong),
        remedy="; ".join(one.remedy for one in wrong),
    )  # fmt: skip


def database(catalog: Catalog) -> Iterator[Finding]:
    """Whether this role may read and change every table, how long that takes, and the clock."""
    with catalog.transaction(write=True) as connection:  # SQLite refuses a file that is read-only
        denied = [
            f"{verb} on {table.name}"
            for table in metadata.sorted_tables
            for verb in ("SELECT", "INSERT", "UPDATE", "DELETE")
            if connection.dialect.name == "postgresql"
            and not connection.scalar(sa.select(sa.func.has_table_privilege(table.name, verb)))
        ]
    asked = datetime.now(UTC)
    with catalog.transaction(write=False) as connection:
        theirs = connection.execute(sa.select(sa.func.current_timestamp())).scalar_one()
    answered = datetime.now(UTC)
    round_s = (answered - asked).total_seconds()
    figures = {"round_ms": round(round_s * 1000, 2)}
    if denied:
        yield Finding(
            check="database", verdict=Diagnosis.WRONG, figures=figures,
            found=f"no right to {', '.join(denied[:5])}" + (" …" if len(denied) > 5 else ""),
            remedy="let the flows' role own the tables: run `atlasloop migrate` as that role, or "
            "grant it what is missing",
        )  # fmt: skip
    elif round_s > SLOW_ROUND_S:
        yield Finding(
            check="database", verdict=Diagnosis.DOUBTFUL, figures=figures,
            found=f"an answer takes {round_s * 1000:.0f} ms",
            remedy="bring database and flows closer together, or see what loads it",
        )  # fmt: skip
    else:
        yield Finding(
            check="database", verdict=Diagnosis.GOOD, figures=figures,
            found=f"all rights on {len(metadata.tables)} tables, {round_s * 1000:.1f} ms an answer",
        )  # fmt: skip
    if isinstance(theirs, str):
        theirs = datetime.fromisoformat(theirs)
    yield clock("database", theirs.replace(tzinfo=theirs.tzinfo or UTC), asked, answered)


def clock(whose: str, theirs: datetime, asked: datetime, answered: datetime) -> Finding:
    """Whether a clock agrees with ours.

    Args:
        theirs: what it said, perhaps in whole seconds.
        asked, answered: by our clock; between them it said so.
    """
    before = (asked - theirs).total_seconds() - 1.0
    after = (theirs - answered).total_seconds()
    apart = max(0.0, before, after)
    good = apart <= CLOCKS_S
    return Finding(
        check=f"clock of the {whose}",
        verdict=Diagnosis.GOOD if good else Diagnosis.WRONG,
        found=f"{apart:.1f} s from ours" if apart else "as ours",
        remedy="" if good else "let all machines take their time by NTP: leases go by it",
        figures={"seconds": round(apart, 3)},
    )


def prefect(places: Places) -> Iterator[Finding]:
    """Whether the server answers, and has somebody to run the flows."""
    places.require_prefect()
    places.enter_prefect(quiet=True)
    from prefect.client.orchestration import get_client

    with get_client(sync_client=True) as client:
        asked = datetime.now(UTC)
        answer = client.request("GET", "/health")
        answered = datetime.now(UTC)
        deployments = client.read_deployments()
    ready = sorted(one.name for one in deployments if one.status and one.status.value == "READY")
    if ready:
        yield Finding(
            check="Prefect", verdict=Diagnosis.GOOD, found=f"serves {', '.join(ready)}",
            figures={"deployments": float(len(ready))},
        )  # fmt: skip
    else:
        yield Finding(
            check="Prefect", verdict=Diagnosis.DOUBTFUL,
            found=f"it answers; of {len(deployments)} deployments none has a worker",
            remedy="start the flows (`atlasloop up`, or the chart's workers): nothing runs by "
            "schedule or from the UI until then",
        )  # fmt: skip
    if "Date" in answer.headers:
        theirs = parsedate_to_datetime(answer.headers["Date"])
        yield clock("Prefect server", theirs, asked, answered)


def attention(places: Places) -> Finding:
    """Whether the attention service serves: every model has answered it."""
    said = attention_serves(places.attention_address)
    return Finding(check="attention service", verdict=Diagnosis.GOOD, found=said)


def review(places: Places) -> Finding:
    """Whether the review service has its database and store, and the organs of the atlas."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(f"{places.review_url}/readyz", timeout=10) as answer:
            answer.read()
    except urllib.error.HTTPError as refusal:
        raise Unavailable(
            "the review service is not ready",
            got=problem_detail(refusal.read()) or f"HTTP {refusal.code}",
            remedy="mend what it says; its log has more",
        ) from None
    return Finding(check="review service", verdict=Diagnosis.GOOD, found="ready")
