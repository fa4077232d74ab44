"""The embedded stack's settings, logs and process records, without starting any of it."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from atlas_core.catalog import Catalog
from atlas_core.errors import ConfigurationError
from atlas_embedded import processes
from atlas_embedded.components import components, first_account
from atlas_embedded.logs import follow, rotate, tail
from atlas_embedded.processes import ProcessRecord
from atlas_embedded.settings import EmbeddedSettings
from atlas_embedded.stack import up
from atlas_review.auth import ACCOUNTS_FILE, FIRST_USER, Accounts, Role
from pydantic import ValidationError


@pytest.fixture(autouse=True)
def _no_settings_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("ATLASLOOP_")]:
        monkeypatch.delenv(name)


def test_arguments_before_environment_before_file_before_defaults(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "config.toml").write_text(
        "attention_port = 1001\nprefect_port = 1001\ntriton_grpc_port = 1001\n"
    )
    monkeypatch.setenv("ATLASLOOP_HOME", str(tmp_path))
    monkeypatch.setenv("ATLASLOOP_PREFECT_PORT", "1002")
    monkeypatch.setenv("ATLASLOOP_TRITON_GRPC_PORT", "1002")
    settings = EmbeddedSettings(triton_grpc_port=1003)
    assert settings.home == tmp_path
    assert (settings.attention_port, settings.prefect_port) == (1001, 1002)
    assert settings.triton_grpc_port == 1003
    assert settings.attention_metrics_port == 18011


def test_a_misspelt_setting_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_text("atention_port = 1001\n")
    with pytest.raises(ValidationError, match="atention_port"):
        EmbeddedSettings(home=tmp_path)


def test_everything_lies_in_the_home_unless_told(tmp_path: Path) -> None:
    settings = EmbeddedSettings(home=tmp_path / "home")
    for path in (settings.store, settings.repository, settings.run, settings.prefect_home):
        assert path.parent == tmp_path / "home"
    assert settings.catalog_url == f"sqlite:///{tmp_path}/home/catalog.sqlite"
    elsewhere = EmbeddedSettings(home=tmp_path / "home", store=tmp_path / "disk")
    assert elsewhere.store == tmp_path / "disk"


def test_another_process_comes_to_the_same_settings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = EmbeddedSettings(
        home=tmp_path, components=("triton", "prefect"), attention_port=1234, stop_timeout_s=3.5
    )
    for name, value in settings.environment().items():
        monkeypatch.setenv(name, value)
    assert EmbeddedSettings() == settings


def test_stacks_are_told_apart_by_their_home(tmp_path: Path) -> None:
    one, other = EmbeddedSettings(home=tmp_path / "a"), EmbeddedSettings(home=tmp_path / "b")
    assert one.stack_id != other.stack_id
    assert one.stack_id == EmbeddedSettings(home=tmp_path / "a", attention_port=1).stack_id
    (tmp_path / "link").symlink_to(tmp_path / "a")
    assert one.stack_id == EmbeddedSettings(home=tmp_path / "link").stack_id


def test_every_port_belongs_to_one_part(tmp_path: Path) -> None:
    settings = EmbeddedSettings(home=tmp_path)
    fields = [field for part in components(settings) for field in part.port_fields]
    assert sorted(fields) == sorted(n for n in EmbeddedSettings.model_fields if n.endswith("_port"))


def test_one_setting_moves_all_ports(tmp_path: Path) -> None:
    usual, moved = EmbeddedSettings(home=tmp_path), EmbeddedSettings(home=tmp_path, port_base=19000)
    names = [name for name in EmbeddedSettings.model_fields if name.endswith("_port")]
    assert len({getattr(usual, name) for name in names}) == len(names)
    for name in names:
        assert getattr(moved, name) == getattr(usual, name) + 1000
    alone = EmbeddedSettings(home=tmp_path, port_base=19000, review_port=8080)
    assert (alone.review_port, alone.prefect_port) == (8080, 19020)
    with pytest.raises(ValidationError, match="port_base"):
        EmbeddedSettings(home=tmp_path, port_base=65534)


@pytest.mark.parametrize("name", ["a\nb", "caf\udce9", "\x1b[2J"])
def test_a_home_that_no_terminal_can_show_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(ValidationError, match="cannot be shown"):
        EmbeddedSettings(home=tmp_path / name)


@pytest.mark.parametrize("name", ["h sp", "h\u00fc", "h#1", "h%20x", "h?x=1"])
def test_a_home_is_used_as_it_is_called(tmp_path: Path, name: str) -> None:
    home = tmp_path / name
    with Catalog.open(EmbeddedSettings(home=home).catalog_url) as catalog:
        assert not catalog.cases()
    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert (home / "catalog.sqlite").stat().st_mode & 0o077 == 0


def test_the_home_is_its_owners_alone_whoever_made_it(tmp_path: Path) -> None:
    for home in (tmp_path / "new" / "home", tmp_path / "old"):
        if home.name == "old":
            home.mkdir(mode=0o755)
        EmbeddedSettings(home=home).make_home()
        assert home.stat().st_mode & 0o777 == 0o700
    shared = tmp_path / "tmp"
    shared.mkdir()
    shared.chmod(0o1777)
    EmbeddedSettings(home=shared).make_home()
    assert shared.stat().st_mode & 0o7777 == 0o1777


def test_a_start_that_fails_keeps_the_first_password(tmp_path: Path) -> None:
    """Killed at any moment, too: the password is there before its account."""
    settings = EmbeddedSettings(home=tmp_path, triton_environment=tmp_path / "none")
    assert first_account(settings) is None
    for _ in range(2):
        with pytest.raises(ConfigurationError):
            up(settings)
        (review,) = [part for part in components(settings) if part.name == "review"]
        review.prepare()
        (tmp_path / "review" / ACCOUNTS_FILE).unlink()
    password = settings.review_password_file.read_text()
    review.prepare()
    assert settings.review_password_file.read_text() == password
    assert first_account(settings) == (FIRST_USER, settings.review_password_file)
    Accounts(tmp_path / "review" / ACCOUNTS_FILE).add_user(
        FIRST_USER, "another one", (Role.MANAGER,)
    )
    assert first_account(settings) is None


def test_a_part_needs_only_parts_that_are_started_before(tmp_path: Path) -> None:
    started: set[str] = set()
    for part in components(EmbeddedSettings(home=tmp_path)):
        assert set(part.needs) <= started
        started.add(part.name)


def test_a_part_inherits_no_prefect_of_somebody_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PREFECT_API_KEY", "of the cloud")
    settings = EmbeddedSettings(home=tmp_path)
    for part in components(settings):
        if part.name == "prefect":
            variables = part.launch().environment(settings, part.name)
            assert "PREFECT_API_KEY" not in variables
            assert variables["PREFECT_API_URL"] == settings.prefect_api_url
            assert variables["PREFECT_SERVER_ANALYTICS_ENABLED"] == "false"


def test_logs_of_four_starts_are_kept(tmp_path: Path) -> None:
    log = tmp_path / "part.log"
    for start in range(6):
        rotate(log)
        log.write_text(f"start {start}\n")
    kept = sorted(tmp_path.iterdir())
    assert [path.read_text() for path in kept] == [f"start {n}\n" for n in (5, 4, 3, 2)]


def test_tail_is_the_last_lines(tmp_path: Path) -> None:
    log = tmp_path / "part.log"
    assert tail(log, 3) == ()
    log.write_text("a\nb\nc\nd\n")
    assert tail(log, 3) == ("b", "c", "d")


def test_follow_goes_on_over_a_restart(tmp_path: Path) -> None:
    log = tmp_path / "part.log"
    log.write_text("old\nfirst\n")
    lines = follow(log, 1)
    assert next(lines) == "first"
    with log.open("a") as file:
        file.write("second\n")
    assert next(lines) == "second"
    rotate(log)
    log.write_text("of the next start\nand more\n")
    assert list(itertools.islice(lines, 2)) == ["of the next start", "and more"]
    lines.close()


def test_a_record_holds_for_one_life_of_a_process(tmp_path: Path) -> None:
    record = processes.start(
        [sys.executable, "-c", "print('here'); input()"], dict(os.environ), tmp_path / "log"
    )
    # Its standard input is empty, so it ends by itself.
    processes.save(record, tmp_path / "record")
    deadline = time.monotonic() + 30
    while record.alive():
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert processes.load(tmp_path / "record") is None
    assert "here" in (tmp_path / "log").read_text()


def test_a_recycled_process_id_is_nobody(tmp_path: Path) -> None:
    with subprocess.Popen(["sleep", "60"]) as stranger:
        there = ProcessRecord.of(stranger.pid)
        assert there is not None and there.alive()
        processes.save(there, tmp_path / "record")
        assert processes.load(tmp_path / "record") == there
        earlier = ProcessRecord(there.pid, there.started_ticks - 1, there.boot_id, 0.0, "")
        other_boot = ProcessRecord(there.pid, there.started_ticks, "another boot", 0.0, "")
        assert not earlier.alive()
        assert not other_boot.alive()
        stranger.kill()


def test_a_damaged_record_is_no_record(tmp_path: Path) -> None:
    for content in ("", "{", '{"pid": 1}', "[]", '"text"'):
        (tmp_path / "record").write_text(content)
        assert processes.load(tmp_path / "record") is None


def test_marked_processes_are_found_by_stack_and_part(tmp_path: Path) -> None:
    variables = {
        **os.environ,
        processes.STACK_VARIABLE: "feedbeef",
        processes.COMPONENT_VARIABLE: "triton",
    }
    record = processes.start(["/bin/sleep", "60"], variables, tmp_path / "log")
    assert [p.pid for p in processes.marked("feedbeef")] == [record.pid]
    assert [p.pid for p in processes.marked("feedbeef", "triton")] == [record.pid]
    assert processes.marked("feedbeef", "prefect") == ()
    processes.end(processes.marked("feedbeef"), 5.0)
    assert not record.alive()
    assert processes.marked("feedbeef") == ()
