"""Backup and restore: between SQLite and PostgreSQL in all four directions, and all or nothing."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sqlalchemy as sa
from atlas_core.catalog import Catalog, tables
from atlas_core.errors import ConfigurationError, Conflict, CorruptFile, NotFound
from atlas_core.geometry import VolumeGeometry
from atlas_core.imaging import Volume
from atlas_core.loop import Iterations
from atlas_core.model_spec import ModelRef, ensemble_key
from atlas_core.records import Case, Dataset, Label, LabelSource, OrganScore, Reading, Score
from atlas_core.store import CaseStore, backup
from atlas_core.store.backup import (
    newest_backup,
    restore_catalog,
    verify_backup,
    verify_store,
    write_backup,
)
from atlas_core.store.backup_format import RowsDigest, row_as_line
from postgres import PostgresServer

NOW = datetime(2026, 1, 2, 3, 4, 5, 678901, tzinfo=UTC)
GEOMETRY = VolumeGeometry.from_array((6, 5, 4), np.diag([-0.8, 0.8, 2.5, 1.0]))
REFS = (ModelRef(name="unet", version=0, sha256="a" * 64),)


def _case(store: CaseStore, number: int) -> tuple[Case, Label]:
    case_id = f"lits_{number:012x}"
    voxels = np.full(GEOMETRY.shape, number, np.int16, order="F")
    sha256 = store.write_ct(case_id, Volume(voxels, GEOMETRY))
    mask = Volume((voxels > 0).astype(np.uint8, order="F"), GEOMETRY)
    stored = store.write_label(case_id, "liver", LabelSource.ORIGINAL, mask)
    case = Case(
        id=case_id,
        dataset="lits",
        content_sha256=sha256,
        shape=GEOMETRY.shape,
        affine=((-0.8, 0, 0, 1 / 3), (0, 0.8, 0, 0), (0, 0, 2.5, 0), (0, 0, 0, 1)),
        source="Müller/ct.nii.gz",
        imported_at=NOW,
    )
    label = Label(
        case_id=case_id,
        organ="liver",
        source=LabelSource.ORIGINAL,
        path=stored.path,
        value=1,
        sha256=stored.sha256,
        voxels=120,
        volume_ml=0.1 + 0.2,
        created_at=NOW,
    )
    return case, label


def _fill(catalog: Catalog, store: CaseStore, cases: int = 3) -> None:
    catalog.add_dataset(Dataset(name="lits", title="LiTS", organs=("liver",)))
    for number in range(1, cases + 1):
        case, label = _case(store, number)
        catalog.add_case(case, [label])
        size = OrganScore(
            organ="liver",
            attention_voxels=1e7 / 3,
            attention_ml=number,
            pseudo_label_ml=1.0,
            disagreement=1 / 3,
            expected_ml=1.0,
        )
        catalog.record_score(
            Score(
                case_id=case.id,
                reading=Reading.PAPER,
                ensemble=ensemble_key(REFS),
                models=REFS,
                organs=(size,),
                seconds=2.5,
                created_at=NOW,
            )
        )
    Iterations(catalog).start({"top": 0.05, "note": "50 % – ü"})


def _content(catalog: Catalog) -> dict[str, list[dict[str, Any]]]:
    with catalog.transaction(write=False) as connection:
        return {
            table.name: sorted(
                (dict(row) for row in connection.execute(sa.select(table)).mappings()), key=repr
            )
            for table in tables.metadata.sorted_tables
        }


@pytest.fixture
def store(tmp_path: Path) -> CaseStore:
    return CaseStore(tmp_path / "store")


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/catalog.sqlite"
    address: str = request.getfixturevalue("postgresql_url")
    return address


@pytest.fixture(params=["sqlite", "postgresql"])
def target_url(
    request: pytest.FixtureRequest, tmp_path: Path, postgres_server: PostgresServer
) -> Iterator[str]:
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path}/restored.sqlite"
        return
    name = f"restored_{os.urandom(4).hex()}"
    postgres_server.execute(f"CREATE DATABASE {name}")
    yield postgres_server.url(name)
    postgres_server.execute(f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture
def sqlite(tmp_path: Path) -> Iterator[Catalog]:
    with Catalog.open(f"sqlite:///{tmp_path}/catalog.sqlite") as catalog:
        yield catalog


@pytest.fixture
def saved(tmp_path: Path, sqlite: Catalog, store: CaseStore) -> Path:
    _fill(sqlite, store)
    write_backup(sqlite, store, tmp_path / "backup")
    return tmp_path / "backup"


def _empty(tmp_path: Path) -> Catalog:
    return Catalog.open(f"sqlite:///{tmp_path}/empty.sqlite")


def test_everything_comes_back_in_either_database(
    url: str, target_url: str, store: CaseStore, tmp_path: Path
) -> None:
    with Catalog.open(url) as catalog, Catalog.open(target_url) as target:
        _fill(catalog, store)
        write_backup(catalog, store, tmp_path / "backup")
        rows = restore_catalog(tmp_path / "backup", target)
        assert _content(target) == _content(catalog)
        assert rows == sum(len(found) for found in _content(catalog).values())
        assert target.ranking(Reading.PAPER) == catalog.ranking(Reading.PAPER)
        # The next row of a table that numbers its rows gets a free number.
        case, label = _case(store, 9)
        target.add_case(case, [label])
        assert target.labels(case.id) == [label]


def test_the_store_is_compared_byte_by_byte(saved: Path, store: CaseStore) -> None:
    assert verify_store(saved, store) == 6
    (store.root / "cases" / "lits_new" / "labels").mkdir(parents=True)
    (store.root / "cases" / "lits_new" / "ct.nii.gz").write_bytes(b"came later")
    assert verify_store(saved, store) == 6
    first, second, *_ = sorted(store.root.glob("cases/*/ct.nii.gz"))
    damaged = bytearray(first.read_bytes())
    damaged[-1] ^= 1
    first.write_bytes(damaged)
    second.unlink()
    with pytest.raises(CorruptFile, match="2 wrong") as refused:
        verify_store(saved, store)
    assert store.relative(first) in str(refused.value)


def test_the_next_backup_reads_only_what_is_new(
    saved: Path, sqlite: Catalog, store: CaseStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rotten, rewritten, *_ = sorted(store.root.glob("cases/*/ct.nii.gz"))
    case, label = _case(store, 4)
    sqlite.add_case(case, [label])
    # A disk's fault leaves the time; a file that is written again has another one.
    status, content = rotten.stat(), bytearray(rotten.read_bytes())
    content[-1] ^= 1
    rotten.write_bytes(content)
    os.utime(rotten, ns=(status.st_atime_ns, status.st_mtime_ns))
    status = rewritten.stat()
    os.utime(rewritten, ns=(status.st_atime_ns, status.st_mtime_ns + 1))
    read = []
    hash_file = backup._sha256
    monkeypatch.setattr(backup, "_sha256", lambda path: read.append(path) or hash_file(path))
    earlier = newest_backup(tmp_path)
    assert earlier == saved
    read.clear()
    write_backup(sqlite, store, tmp_path / "second", earlier=earlier)
    of_the_store = {path for path in read if store.root in path.parents}
    assert of_the_store == {rewritten, *store.root.glob(f"cases/{case.id}/**/*.nii.gz")}
    assert verify_backup(tmp_path / "second").store.files == 8
    with pytest.raises(CorruptFile, match="1 wrong"):  # the fault is not taken for the truth
        verify_store(tmp_path / "second", store)


def test_a_damaged_list_is_not_built_on(
    saved: Path, sqlite: Catalog, store: CaseStore, tmp_path: Path
) -> None:
    write_backup(sqlite, store, tmp_path / "second")
    assert newest_backup(tmp_path) == tmp_path / "second"
    with (tmp_path / "second" / "store.jsonl").open("ab") as file:
        file.write(b"{}")
    (tmp_path / "third").mkdir()
    (tmp_path / "third" / "backup.json").write_text("{")
    assert newest_backup(tmp_path) == saved
    write_backup(sqlite, None, tmp_path / "without")
    assert newest_backup(tmp_path) == saved


def test_a_row_without_its_file_is_no_backup(
    sqlite: Catalog, store: CaseStore, tmp_path: Path
) -> None:
    _fill(sqlite, store)
    next(store.root.glob("cases/*/labels/*/*")).unlink()
    with pytest.raises(NotFound, match="lacks 1 files"):
        write_backup(sqlite, store, tmp_path / "backups" / "one")
    assert list((tmp_path / "backups").iterdir()) == []


def test_a_backup_never_replaces_anything(saved: Path, sqlite: Catalog) -> None:
    before = {path: path.read_bytes() for path in saved.rglob("*.json*")}
    with pytest.raises(Conflict, match="name a new folder"):
        write_backup(sqlite, None, saved)
    assert {path: path.read_bytes() for path in saved.rglob("*.json*")} == before


def test_a_target_with_rows_is_refused_and_kept(
    saved: Path, target_url: str, store: CaseStore
) -> None:
    with Catalog.open(target_url) as target:
        target.add_dataset(Dataset(name="mine"))
        before = _content(target)
        with pytest.raises(Conflict, match="rows in datasets"):
            restore_catalog(saved, target)
        assert _content(target) == before


@pytest.mark.parametrize("name", ["catalog/labels.jsonl", "catalog/cases.jsonl", "store.jsonl"])
@pytest.mark.parametrize("harm", ["altered", "cut", "gone"])
def test_a_damaged_backup_writes_nothing(saved: Path, tmp_path: Path, name: str, harm: str) -> None:
    file = saved / name
    content = file.read_bytes()
    if harm == "gone":
        file.unlink()
    else:
        file.write_bytes(
            content.replace(b"lits", b"LITS", 1) if harm == "altered" else content[:-9]
        )
    with _empty(tmp_path) as target:
        before = _content(target)
        with pytest.raises(CorruptFile):
            restore_catalog(saved, target)
        assert _content(target) == before


def test_a_consistent_forgery_of_one_row_is_rolled_back(saved: Path, tmp_path: Path) -> None:
    """The last check, after writing: what is in the tables must be what was backed up."""
    table, manifest_file = saved / "catalog" / "scores.jsonl", saved / "backup.json"
    table.write_bytes(table.read_bytes().replace(b"2.5", b"2.6", 1))
    manifest = json.loads(manifest_file.read_text())
    manifest["tables"]["scores"]["sha256"] = hashlib.sha256(table.read_bytes()).hexdigest()
    manifest_file.write_text(json.dumps(manifest))
    with _empty(tmp_path) as target:
        before = _content(target)
        with pytest.raises(CorruptFile, match="scores does not come back"):
            restore_catalog(saved, target)
        assert _content(target) == before


@pytest.mark.parametrize(
    ("change", "error", "said"),
    [
        ({"revision": "9999"}, ConfigurationError, "9999"),
        ({"format": 2}, CorruptFile, "format"),
        ({"tables": {}}, CorruptFile, "tables of its schema"),
        ({"extra": 1}, CorruptFile, "extra"),
    ],
)
def test_another_version_is_refused(
    saved: Path, tmp_path: Path, change: dict[str, Any], error: type[Exception], said: str
) -> None:
    manifest_file = saved / "backup.json"
    manifest_file.write_text(json.dumps(json.loads(manifest_file.read_text()) | change))
    with _empty(tmp_path) as target:
        before = _content(target)
        with pytest.raises(error, match=said):
            restore_catalog(saved, target)
        assert _content(target) == before


def test_a_folder_without_a_backup(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match=r"backup\.json"):
        verify_backup(tmp_path)


def test_a_backup_is_for_its_owner_alone(saved: Path) -> None:
    assert saved.stat().st_mode & 0o077 == 0


def test_the_digest_of_rows_knows_no_order_but_counts() -> None:
    def digest(*rows: dict[str, Any]) -> str:
        found = RowsDigest()
        for row in rows:
            found.add(row_as_line(row))
        return found.hexdigest()

    a, b = {"id": 1, "at": NOW}, {"at": NOW, "id": 2}
    assert digest(a, b) == digest(b, a)
    assert digest(a, a, b) != digest(a, b)
    assert digest(a, a) != digest(b, b)
    assert digest({"at": NOW, "id": 1}) == digest(a)


def _command(home: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "atlas_flows.cli", "--home", str(home), *arguments],
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip


def test_the_commands_move_a_home(tmp_path: Path) -> None:
    home, moved, folder = tmp_path / "home", tmp_path / "moved", tmp_path / "saved"
    with Catalog.open(f"sqlite:///{home}/catalog.sqlite") as catalog:
        _fill(catalog, CaseStore(home / "store"))
    done = _command(home, "backup", str(folder))
    assert done.returncode == 0, done.stderr
    assert "6 files listed" in done.stdout
    refused = _command(moved, "restore", str(folder))
    assert refused.returncode == 2
    assert "restore the store from its own copy first" in refused.stderr
    assert not (moved / "catalog.sqlite").exists()
    moved.mkdir(exist_ok=True)
    (home / "store").rename(moved / "store")
    done = _command(moved, "restore", str(folder))
    assert done.returncode == 0, done.stderr
    with Catalog.open(f"sqlite:///{moved}/catalog.sqlite") as catalog:
        assert len(catalog.cases()) == 3
    assert _command(moved, "migrate").returncode == 0
