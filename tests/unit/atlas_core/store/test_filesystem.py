"""What the store needs of a file system is tried out for real, and what is missing is named."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from atlas_core.store import check_filesystem, filesystem


def test_a_local_disk_has_all_of_it_and_is_left_as_it_was(tmp_path: Path) -> None:
    found = check_filesystem(tmp_path)
    assert [one for one in found if not one.met] == []
    assert len(found) == 8
    assert list(tmp_path.iterdir()) == []


def test_a_mount_of_another_folder_is_found_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(filesystem, "PATIENCE_S", 0.1)
    here, there = tmp_path / "here", tmp_path / "there"
    here.mkdir()
    there.mkdir()
    assert filesystem.main([str(here), str(there), "--json"]) == 1
    wrong = {one["name"] for one in json.loads(capsys.readouterr().out) if not one["met"]}
    assert wrong == {
        "a new file is there for others",
        "a replaced file is whole for others",
        "a lock keeps others out, and ends with its holder",
    }


def test_a_lock_that_stays_on_its_own_machine_is_found_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As with ``nolock``: a lock by another name stands for one that the server never hears of."""

    class Local(filesystem.FileLock):  # type: ignore[misc]  # made by filelock for the platform
        def __init__(self, path: Path) -> None:
            super().__init__(path.with_name("of this machine"))

    monkeypatch.setattr(filesystem, "FileLock", Local)
    (found,) = [one for one in check_filesystem(tmp_path) if one.name.startswith("a lock")]
    assert not found.met
    assert "nolock" in found.remedy


@pytest.mark.parametrize(
    ("call", "wrong"),
    [
        ("fsync", "files and folders are put on disk"),
        ("fchmod", "files keep their mode"),
    ],
)
def test_what_a_file_system_refuses_is_named(
    call: str, wrong: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(os, call, refuse)
    found = {one.name: one for one in check_filesystem(tmp_path)}
    assert not found[wrong].met
    assert found[wrong].found.endswith("Operation not supported")


def test_a_folder_that_cannot_be_written_to_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    assert filesystem.main([str(tmp_path / "file")]) == 1
    assert "nothing can be written to" in capsys.readouterr().err
