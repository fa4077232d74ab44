"""Writes that are killed, refused or raced leave the old content or the new, and no litter."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from atlas_core import atomic_writes
from atlas_core.atomic_writes import (
    ABANDONED_AFTER_S,
    AtomicFile,
    discard_folder,
    draft_name,
    is_stale,
    make_folders,
    move_file,
    move_folder,
    new_folder,
    replace_file,
    scratch_folder,
    synced_file,
    write_synced,
)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def permissions(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


PRELUDE = """
import os, signal, sys
from pathlib import Path
folder = Path(sys.argv[1])
"""


def run_killed(code: str, folder: Path) -> None:
    """Run `code` in a process that ends by SIGKILL."""
    command = [sys.executable, "-c", PRELUDE + code, str(folder)]
    run = subprocess.run(command, check=False, timeout=60)
    assert run.returncode == -9


KILLED_FILE = """
from atlas_core.atomic_writes import AtomicFile
with AtomicFile(folder / "list.json") as file:
    file.write(b"half of the new li")
    file.flush()
    os.kill(os.getpid(), signal.SIGKILL)
"""

KILLED_FOLDER = """
from atlas_core.atomic_writes import new_folder
with new_folder(folder / "atlas") as draft:
    (draft / "half").write_text("")
    os.kill(os.getpid(), signal.SIGKILL)
"""

FULL_DISK = """
import resource, signal, sys
from pathlib import Path
from atlas_core.atomic_writes import AtomicFile, new_folder, replace_file, synced_file

folder = Path(sys.argv[1])
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (500_000, 500_000))


def whole():
    replace_file(folder / "list.json", bytes(600_000))


def in_pieces():
    with AtomicFile(folder / "list.json") as file:
        for _ in range(600):
            file.write(bytes(1_000))


def a_folder():
    with new_folder(folder / "atlas") as draft, synced_file(draft / "table") as file:
        file.write(bytes(600_000))


for attempt in (whole, in_pieces, a_folder):
    try:
        attempt()
    except OSError:
        print("refused", attempt.__name__)
"""


# Files ----------------------------------------------------------------------------------------


def test_a_file_appears_when_it_is_complete(tmp_path: Path) -> None:
    path = tmp_path / "list.json"
    path.write_bytes(b"old")
    with AtomicFile(path) as file:
        file.write(b"new ")
        file.flush()
        assert path.read_bytes() == b"old"
        file.write(memoryview(b"content"))
    assert path.read_bytes() == b"new content"
    assert names(tmp_path) == ["list.json"]


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "list.json"
    replace_file(path, b"old")
    with pytest.raises(ZeroDivisionError), AtomicFile(path) as file:
        file.write(b"new")
        raise ZeroDivisionError
    assert path.read_bytes() == b"old"
    assert names(tmp_path) == ["list.json"]


def test_discarding_a_committed_file_keeps_it(tmp_path: Path) -> None:
    file = AtomicFile(tmp_path / "list.json")
    file.write(b"new")
    file.commit()
    file.discard()
    assert (tmp_path / "list.json").read_bytes() == b"new"


def test_a_killed_write_leaves_the_old_file_and_a_draft_that_the_next_one_removes(
    tmp_path: Path,
) -> None:
    path = tmp_path / "list.json"
    replace_file(path, b"old")
    run_killed(KILLED_FILE, tmp_path)
    assert path.read_bytes() == b"old"
    draft, _ = names(tmp_path)
    assert draft.startswith(".list.json.")
    replace_file(path, b"new")
    assert path.read_bytes() == b"new"
    assert names(tmp_path) == ["list.json"]


def test_a_full_disk_leaves_what_was_there(tmp_path: Path) -> None:
    """A limit on the size of files stands for the full disk."""
    replace_file(tmp_path / "list.json", b"old")
    run = subprocess.run(
        [sys.executable, "-c", FULL_DISK, str(tmp_path)],
        capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip
    assert run.stdout.split() == ["refused", "whole", "refused", "in_pieces", "refused", "a_folder"]
    assert (tmp_path / "list.json").read_bytes() == b"old"
    assert names(tmp_path) == ["list.json"]


@pytest.mark.parametrize("umask", [0o002, 0o022, 0o077])
def test_permissions_are_those_asked_for_or_those_of_the_umask(tmp_path: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        replace_file(tmp_path / "public", b"")
        replace_file(tmp_path / "private", b"", mode=0o600)
        with AtomicFile(tmp_path / "usual"):
            pass
        with new_folder(tmp_path / "owners", mode=0o700):
            pass
    finally:
        os.umask(before)
    assert permissions(tmp_path / "public") == 0o644
    assert permissions(tmp_path / "private") == 0o600
    assert permissions(tmp_path / "usual") == 0o666 & ~umask
    assert permissions(tmp_path / "owners") == 0o700


def test_a_private_file_is_private_from_its_first_byte(tmp_path: Path) -> None:
    with AtomicFile(tmp_path / "accounts.json", mode=0o600) as file:
        file.write(b"secret")
        file.flush()
        (draft,) = tmp_path.iterdir()
        assert permissions(draft) == 0o600


def test_content_is_on_disk_before_it_has_its_name_and_the_name_is_after(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[str] = []
    fsync, replace = os.fsync, Path.replace

    def observed_fsync(descriptor: int) -> None:
        is_folder = stat.S_ISDIR(os.fstat(descriptor).st_mode)
        steps.append("sync folder" if is_folder else "sync file")
        fsync(descriptor)

    def observed_replace(path: Path, target: Path) -> Path:
        steps.append("rename")
        return replace(path, target)

    monkeypatch.setattr(atomic_writes.os, "fsync", observed_fsync)
    monkeypatch.setattr(Path, "replace", observed_replace)
    replace_file(tmp_path / "list.json", b"new")
    assert steps == ["sync file", "rename", "sync folder"]


# Folders --------------------------------------------------------------------------------------


def test_a_folder_appears_whole(tmp_path: Path) -> None:
    target = tmp_path / "releases" / "atlas"
    with new_folder(target) as draft:
        write_synced(draft / "one", b"1")
        (draft / "more").mkdir()
        with synced_file(draft / "more" / "two") as file:
            file.write(b"2")
        assert not target.exists()
    assert (target / "one").read_bytes() == b"1"
    assert (target / "more" / "two").read_bytes() == b"2"
    assert names(target.parent) == ["atlas"]


def test_a_folder_that_fails_does_not_appear(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), new_folder(tmp_path / "atlas") as draft:
        (draft / "half").write_text("")
        raise ZeroDivisionError
    assert names(tmp_path) == []


def test_a_killed_folder_leaves_a_draft_that_the_next_one_removes(tmp_path: Path) -> None:
    run_killed(KILLED_FOLDER, tmp_path)
    (draft,) = names(tmp_path)
    assert draft.startswith(".atlas.")
    with new_folder(tmp_path / "atlas") as folder:
        (folder / "whole").write_text("")
    assert names(tmp_path) == ["atlas"]


def test_a_folder_that_is_there_stays(tmp_path: Path) -> None:
    (tmp_path / "atlas").mkdir()
    (tmp_path / "atlas" / "first").write_text("")
    with pytest.raises(FileExistsError), new_folder(tmp_path / "atlas") as draft:
        (draft / "second").write_text("")
    assert names(tmp_path / "atlas") == ["first"]
    assert names(tmp_path) == ["atlas"]


def test_a_scratch_folder_goes_with_what_was_not_moved_out_of_it(tmp_path: Path) -> None:
    with scratch_folder(tmp_path / "store", prefix=".incoming-") as scratch:
        assert scratch.name.startswith(".incoming-")
        write_synced(scratch / "label", b"1")
        write_synced(scratch / "rest", b"0")
        (scratch / "prediction").mkdir()
        move_file(scratch / "label", tmp_path / "store" / "labels" / "liver")
        move_folder(scratch / "prediction", tmp_path / "store" / "predictions" / "unet")
    assert names(tmp_path / "store") == ["labels", "predictions"]
    assert (tmp_path / "store" / "labels" / "liver").read_bytes() == b"1"
    assert names(tmp_path / "store" / "predictions") == ["unet"]


def test_a_folder_is_discarded_in_one_step(tmp_path: Path) -> None:
    make_folders(tmp_path / "case" / "labels")
    with scratch_folder(tmp_path / ".incoming") as scratch:
        assert discard_folder(tmp_path / "case", scratch)
        assert not (tmp_path / "case").exists()
        assert not discard_folder(tmp_path / "case", scratch)
    assert names(tmp_path / ".incoming") == []


# Drafts ---------------------------------------------------------------------------------------


def aged(path: Path, seconds: float) -> Path:
    written = path.stat().st_mtime - seconds
    os.utime(path, (written, written))
    return path


def test_a_draft_is_stale_when_its_process_has_ended_or_after_a_day(tmp_path: Path) -> None:
    ours = tmp_path / draft_name()
    ours.touch()
    assert not is_stale(ours, ABANDONED_AFTER_S)
    assert is_stale(aged(ours, ABANDONED_AFTER_S + 60), ABANDONED_AFTER_S)
    elsewhere = tmp_path / f"another-host.1.{'0' * 16}"
    elsewhere.touch()
    assert not is_stale(elsewhere, ABANDONED_AFTER_S)
    assert is_stale(aged(elsewhere, ABANDONED_AFTER_S + 60), ABANDONED_AFTER_S)
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    host = draft_name().split(".")[0]
    dead = tmp_path / f"{host}.{ended.pid}.{'0' * 16}"
    dead.touch()
    assert is_stale(dead, ABANDONED_AFTER_S)


def test_only_stale_drafts_of_the_same_name_are_swept(tmp_path: Path) -> None:
    kept = [
        f".list.json.{draft_name()}",  # another thread is writing it
        f".list.json.another-host.1.{'0' * 16}",
        ".list.json.lock",
        f".list.json.gz.another-host.1.{'1' * 16}",
        f".other.another-host.1.{'0' * 16}",
    ]
    for name in kept:
        (tmp_path / name).touch()
    for name in kept[2:]:
        aged(tmp_path / name, ABANDONED_AFTER_S + 60)
    left = tmp_path / f".list.json.another-host.2.{'0' * 16}"
    left.touch()
    aged(left, ABANDONED_AFTER_S + 60)
    replace_file(tmp_path / "list.json", b"new")
    assert names(tmp_path) == sorted([*kept, "list.json"])
