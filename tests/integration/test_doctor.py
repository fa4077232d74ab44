"""`atlasloop doctor`: a site in order passes, and every fault is found and named."""

from __future__ import annotations

import json
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sqlalchemy as sa
from atlas_core.catalog import Catalog
from atlas_embedded.triton_models import repository_of
from atlas_flows.doctor.reference import reference_windows
from atlas_flows.doctor.surroundings import clock, database, shared_memory
from ports import free_port
from stack import Stack

pytestmark = pytest.mark.stack


def doctor(stack: Stack, **variables: str) -> tuple[int, dict[str, dict[str, Any]]]:
    """Exit status and findings of the command."""
    ran = subprocess.run(
        [sys.executable, "-m", "atlas_flows.cli", "doctor", "--without-review", "--json"],
        env=stack.environment() | variables,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert ran.stdout, ran.stderr
    report = json.loads(ran.stdout)
    assert report["healthy"] == (ran.returncode == 0)
    return ran.returncode, {one["check"]: one for one in report["findings"]}


def test_a_site_in_order_passes_and_what_is_wrong_is_named(
    prefect_stack: Stack, tmp_path: Path
) -> None:
    with Catalog.open(prefect_stack.settings.catalog_url):
        pass
    elsewhere = {"ATLASLOOP_MODEL_STORE": str(tmp_path)}
    code, found = doctor(prefect_stack, **elsewhere)
    assert not [one for one in found.values() if one["verdict"] == "wrong"]
    assert code == 0
    models = [one for check, one in found.items() if check.startswith("model ")]
    assert len(models) == 3
    for one in models:
        assert one["figures"]["dice"] >= 0.99 and one["figures"]["windows_a_second"] > 0
    assert found["shared memory"]["verdict"] == "good"
    assert found["file system"]["verdict"] == "good"
    assert found["database"]["verdict"] != "wrong"
    assert found["attention service"]["found"] == "serving"
    assert found["Prefect"]["verdict"] == "doubtful", "nobody runs flows here"

    # A member answers otherwise than it was exported, and a service is away.
    repository = repository_of(prefect_stack.settings)
    (spec,) = repository.served("conv_a")
    kept = tmp_path / f".reference-{spec.sha256}.npz"
    with np.load(kept) as answers:
        others = [255 - answers[name] for name in answers.files]
    np.savez(kept, *others)
    away = {"ATLASLOOP_ATTENTION_ADDRESS": f"127.0.0.1:{free_port()}"}
    code, found = doctor(prefect_stack, **elsewhere, **away)
    assert code == 1
    wrong = {check for check, one in found.items() if one["verdict"] == "wrong"}
    assert wrong == {"model conv_a@0", "attention service"}
    assert "install the model again" in found["model conv_a@0"]["remedy"]
    assert all(found[check]["remedy"] for check in wrong)


def test_a_role_that_may_not_write_is_found(postgresql_url: str) -> None:
    Catalog.open(postgresql_url).close()
    engine = sa.create_engine(postgresql_url.replace("postgresql://", "postgresql+psycopg://"))
    with engine.begin() as connection:
        connection.execute(sa.text("CREATE ROLE onlooker LOGIN PASSWORD 'look'"))
        connection.execute(sa.text("GRANT SELECT ON ALL TABLES IN SCHEMA public TO onlooker"))
        connection.execute(sa.text("REVOKE SELECT ON cases FROM onlooker"))
    address = sa.make_url(postgresql_url).set(username="onlooker", password="look")
    try:
        with Catalog.open(postgresql_url) as catalog:
            assert all(one.verdict != "wrong" for one in database(catalog))
        with Catalog.open(address.render_as_string(hide_password=False)) as catalog:
            rights, clock = database(catalog)
    finally:
        with engine.begin() as connection:
            connection.execute(sa.text("DROP OWNED BY onlooker"))
            connection.execute(sa.text("DROP ROLE onlooker"))
        engine.dispose()
    assert rights.verdict == "wrong" and "INSERT on" in rights.found
    assert "as that role" in rights.remedy
    assert clock.verdict == "good"


def test_a_clock_that_is_apart_is_found() -> None:
    asked = datetime(2026, 1, 1, 12, 0, 10, 500_000, tzinfo=UTC)
    answered = asked + timedelta(seconds=4)
    for good in (-0.6, 0, 3, 5):  # whole seconds are cut off; an answer may take its time
        assert clock("server", asked + timedelta(seconds=good), asked, answered).verdict == "good"
    for wrong in (-60, 60):
        found = clock("server", asked + timedelta(seconds=wrong), asked, answered)
        assert found.verdict == "wrong" and "NTP" in found.remedy


def test_shared_memory_that_cannot_hold_the_windows_is_found(stack: Stack, tmp_path: Path) -> None:
    specs = [
        spec for name in ("conv_a", "conv_b") for spec in repository_of(stack.settings).served(name)
    ]
    assert shared_memory(tmp_path, specs, 5).verdict == "good"
    full = shared_memory(tmp_path, specs, 10**9)
    assert full.verdict == "wrong" and "WINDOWS_IN_FLIGHT" in full.remedy


def test_reference_windows_are_the_same_everywhere_and_of_the_models_form(stack: Stack) -> None:
    (spec,) = repository_of(stack.settings).served("conv_a")
    first, second = reference_windows(spec), reference_windows(spec)
    for one, again in zip(first, second, strict=True):
        assert np.array_equal(one, again)
        assert one.shape == tuple(reversed(spec.patch)) and one.dtype == np.float32
        assert one.min() < 0 < one.max(), "a body, and what is around it"
    assert not np.array_equal(first[0], first[1])
