"""A service taken over: what the review service's own role of the database lets it do, and not.

Real PostgreSQL, with the roles of the script that compose and chart run, and the rights that
`atlasloop migrate` gives.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psycopg
import pytest
import sqlalchemy as sa
from atlas_core.catalog import Catalog
from atlas_core.catalog.rights import HIDDEN, WRITES
from atlas_core.catalog.tables import REVISION, VERSION_TABLE, metadata
from atlas_core.errors import ConfigurationError
from atlas_core.geometry import VolumeGeometry
from atlas_core.imaging import write_volume
from postgres import PASSWORD, PostgresServer, program, running_postgres
from rendered_chart import REPOSITORY
from review_server import make_place, running_review

SCRIPT = REPOSITORY / "deploy" / "compose" / "databases.sh"
PASSWORDS = {"catalog": "c'at \\alog", "review": 'rev"iew', "prefect": "$prefect"}
"""By the file's first word; any character may stand in one."""

API = "/api/v1"


@dataclass(frozen=True)
class Site:
    """A server with the databases of a deployment."""

    server: PostgresServer
    folder: Path

    def make_databases(self, **variables: str) -> subprocess.CompletedProcess[str]:
        files = {f"{one.upper()}_PASSWORD_FILE": str(self.folder / one) for one in PASSWORDS}
        surroundings = {
            "PATH": f"{program('psql').parent}:{os.environ['PATH']}",
            "PGHOST": "127.0.0.1",
            "PGPORT": str(self.server.port),
            "POSTGRES_USER": "atlas",
        }
        return subprocess.run(
            ["bash", SCRIPT], env=surroundings | files | variables,
            capture_output=True, text=True, check=False,
        )  # fmt: skip

    def url(self, user: str, password: str) -> str:
        return sa.URL.create(
            "postgresql", user, password, "127.0.0.1", self.server.port, "atlasloop"
        ).render_as_string(hide_password=False)

    def connect(
        self, user: str, password: str, database: str = "atlasloop"
    ) -> psycopg.Connection[tuple[object, ...]]:
        return psycopg.connect(
            host="127.0.0.1", port=self.server.port, user=user, password=password,
            dbname=database, autocommit=True,
        )  # fmt: skip

    def variables(self, user: str, password: str) -> dict[str, str]:
        """As a deployment gives them: the password is libpq's to find."""
        url = f"postgresql://{user}@127.0.0.1:{self.server.port}/atlasloop"
        return {
            "ATLASLOOP_CATALOG_URL": url,
            "ATLAS_REVIEW_CATALOG_URL": url,
            "PGPASSWORD": password,
            "ATLASLOOP_HOME": str(self.folder / "home"),
        }

    def migrate(self, user: str, password: str, role: str) -> subprocess.CompletedProcess[str]:
        variables = self.variables(user, password) | {"ATLASLOOP_REVIEW_ROLE": role}
        return subprocess.run(
            [sys.executable, "-m", "atlas_flows.cli", "migrate"], env=os.environ | variables,
            capture_output=True, text=True, check=False,
        )  # fmt: skip


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    folder = tmp_path_factory.mktemp("secrets")
    for name, password in PASSWORDS.items():
        (folder / name).write_text(f"{password}\n")
    with running_postgres() as server:
        site = Site(server, folder)
        made = site.make_databases(PGPASSWORD=PASSWORD)
        assert (made.returncode, made.stderr) == (0, "")
        migrated = site.migrate("atlasloop", PASSWORDS["catalog"], "atlasloop_review")
        assert migrated.returncode == 0, migrated.stderr
        yield site


@pytest.fixture(scope="module")
def review_role(site: Site) -> Iterator[psycopg.Connection[tuple[object, ...]]]:
    with site.connect("atlasloop_review", PASSWORDS["review"]) as connection:
        yield connection


def test_nobody_is_superuser_by_network(site: Site) -> None:
    for password in (PASSWORD, *PASSWORDS.values(), ""):
        with pytest.raises(psycopg.OperationalError, match="password"):
            site.connect("atlas", password, "postgres")
    for role in ("atlasloop", "atlasloop_review", "prefect"):
        password = PASSWORDS[{"atlasloop": "catalog", "atlasloop_review": "review"}.get(role, role)]
        own = "prefect" if role == "prefect" else "atlasloop"
        with site.connect(role, password, own) as connection:
            powers = connection.execute(
                "SELECT rolsuper, rolcreaterole, rolcreatedb, rolreplication, rolbypassrls"
                " FROM pg_roles WHERE rolname = current_user"
            ).fetchone()
        assert powers == (False,) * 5
        for other in {"postgres", "prefect", "atlasloop"} - {own}:
            with pytest.raises(psycopg.OperationalError, match="permission denied"):
                site.connect(role, password, other)


@pytest.mark.parametrize(
    "statement",
    [
        "DROP TABLE audit_log",
        "TRUNCATE labels",
        "ALTER TABLE labels ADD COLUMN evil text",
        "CREATE TABLE evil (a int)",
        "CREATE SCHEMA evil",
        "CREATE ROLE evil",
        "UPDATE audit_log SET who = 'somebody else'",
        "DELETE FROM audit_log",
        "UPDATE labels SET annotator = 'somebody else'",
        "DELETE FROM labels",
        "DELETE FROM cases",
        "UPDATE cases SET content_sha256 = ''",
        "UPDATE promotions SET forced = false",
        "INSERT INTO outgoing_events (key) VALUES ('x')",
        "SELECT * FROM outgoing_events",
        f"UPDATE {VERSION_TABLE} SET version_num = '9999'",
        "SET ROLE atlasloop",
        "COPY (SELECT 1) TO PROGRAM 'id'",
        "SELECT pg_read_file('/etc/passwd')",
    ],
)
def test_review_cannot(review_role: psycopg.Connection[tuple[object, ...]], statement: str) -> None:
    with pytest.raises(psycopg.errors.InsufficientPrivilege):
        review_role.execute(statement)  # type: ignore[call-overload]


def test_rights_are_those_that_are_written_down(
    review_role: psycopg.Connection[tuple[object, ...]],
) -> None:
    """A table without a line may be read and not written."""
    assert {*HIDDEN, *WRITES} <= set(metadata.tables)
    held = review_role.execute(
        "SELECT table_name, string_agg(privilege_type, ', ' ORDER BY privilege_type)"
        " FROM information_schema.role_table_grants WHERE grantee = current_user GROUP BY 1"
    ).fetchall()
    wanted = {}
    for table in {*metadata.tables, VERSION_TABLE} - HIDDEN:
        words = [*WRITES.get(table, "").split(", "), "SELECT"]
        wanted[table] = ", ".join(sorted(word for word in words if word and "(" not in word))
    assert dict(held) == wanted


def test_the_review_service_works_by_its_own_role(site: Site, tmp_path: Path) -> None:
    """What annotators do in a day, so that no right is missing."""
    owner = site.url("atlasloop", PASSWORDS["catalog"])
    place = make_place(tmp_path / "place", cases=2, columns=32, catalog=owner)
    own = site.url("atlasloop_review", PASSWORDS["review"])
    with running_review(place, catalog_url=own) as running, ExitStack() as day:
        people = ("ann", "bob", "rita", "admin")
        ann, bob, rita, admin = (day.enter_context(running.client(name)) for name in people)

        def done(answer: httpx.Response) -> Any:
            assert answer.is_success, answer.text
            return answer.json() if answer.content else None

        task = done(ann.post(f"{API}/queue/next"))
        path, case = f"{API}/tasks/{task['id']}", f"{API}/cases/{task['case_id']}"
        done(ann.post(f"{path}/lease"))
        detail = done(ann.get(path))["case"]
        verdict = {"verdict": "needs_revision", "error_type": "missing_cavity", "note": "fundus"}
        done(ann.put(f"{path}/organs/stomach", json=verdict))
        labels = ann.get(detail["label_map"]["url"]).content
        done(ann.put(f"{path}/draft", content=labels))
        done(ann.delete(f"{path}/draft"))
        base = next(one["id"] for one in detail["labels"] if one["organ"] == "stomach")
        query = {"organ": "stomach", "base": base, "task": task["id"]}
        files = {"label": ("mask.nii.gz", _cube(detail, tmp_path), "application/gzip")}
        version = done(ann.post(f"{case}/labels", params=query, files=files))
        revised = {"seconds_spent": 9, "labels": {"stomach": version["id"]}}
        done(ann.post(f"{path}/revise", json=revised))
        query |= {"base": version["id"]}
        del query["task"]
        files = {"label": ("mask.nii.gz", _cube(detail, tmp_path, 6), "application/gzip")}
        kept = bob.post(f"{case}/labels", params=query, files=files)
        kept = kept.json()["submitted"]["id"]
        over = {"over": version["id"]}
        done(admin.post(f"{case}/proposals/{kept}/accept", json=over))
        done(admin.post(f"{path}/reopen", json={"reason": "again"}))
        done(admin.put(f"{case}/flag", json={"flagged": True, "reason": "odd"}))
        done(admin.put(f"{case}/flag", json={"flagged": False, "reason": ""}))
        other = done(ann.post(f"{API}/queue/next"))
        done(ann.post(f"{API}/tasks/{other['id']}/second-reader", json={"note": "unsure"}))
        done(rita.post(f"{API}/queue/next"))
        done(admin.post(f"{API}/queue", json={"share": 1.0}))
        for shown in ("statistics", "queue", "cases"):
            done(admin.get(f"{API}/{shown}"))
        entries = done(admin.get(f"{API}/audit", params={"limit": 100}))["entries"]
        actions = {one["action"] for one in entries}
        assert {"sign in", "revised", "reopen"} <= actions
        done(ann.delete(f"{API}/session"))


def _cube(case: dict[str, Any], folder: Path, start: int = 5) -> bytes:
    mask = np.zeros(case["shape"], np.uint8, order="F")
    mask[start:9, 5:9, 5:9] = 1
    geometry = VolumeGeometry.from_array(tuple(case["shape"]), np.array(case["affine"]))
    write_volume(folder / "mask.nii.gz", mask, geometry)
    return (folder / "mask.nii.gz").read_bytes()


def test_who_may_not_migrate_is_told_who_does(site: Site) -> None:
    owner = site.connect("atlasloop", PASSWORDS["catalog"])
    with owner:
        owner.execute(f"UPDATE {VERSION_TABLE} SET version_num = '0004'")
    try:
        with pytest.raises(ConfigurationError, match="run `atlasloop migrate`"):
            Catalog.open(site.url("atlasloop_review", PASSWORDS["review"]))
    finally:
        with site.connect("atlasloop", PASSWORDS["catalog"]) as connection:
            connection.execute(f"UPDATE {VERSION_TABLE} SET version_num = '{REVISION}'")


def test_a_role_that_is_not_there_is_named(site: Site) -> None:
    migrated = site.migrate("atlasloop", PASSWORDS["catalog"], "nobody_we_know")
    assert migrated.returncode == 2
    assert "nobody_we_know" in migrated.stderr
    assert "Traceback" not in migrated.stderr
