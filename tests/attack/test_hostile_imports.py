"""Folders as malice, accident and old shares leave them: whatever lies beside good CTs, these are
imported, and every file that is not says why, in words that no terminal obeys."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from atlas_core.catalog import Catalog
from atlas_core.geometry import VolumeGeometry
from atlas_core.imaging import content_sha256, read_volume, write_volume
from atlas_core.importing import import_folder
from atlas_core.store import CaseStore
from dicom_series import write_series
from numpy.typing import NDArray
from pydicom.config import IGNORE, settings

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:pydicom")

GRID = VolumeGeometry.from_array((24, 24, 12), np.diag([4.0, 4.0, 5.0, 1.0]))

PATIENCE_S = 240
"""A run that hangs ends the test."""


def write_ct(path: Path, seed: int) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    voxels = np.random.default_rng(seed).integers(-1000, 1200, GRID.shape).astype(np.int16)
    write_volume(path, np.asfortranarray(voxels), GRID)
    return path


def write_mask(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    mask = np.zeros(GRID.shape, np.uint8)
    mask[4:8, 4:8, 4:8] = 1
    write_volume(path, mask, GRID)
    return path


# What lies beside the good ones


def attribute(keyword: str, value: Any) -> Callable[[Path], object]:
    """A series whose headers have this value, which may be none that a scanner would write."""
    return lambda folder: write_series(folder, lambda dataset, k: setattr(dataset, keyword, value))


def patched(find: bytes, replacement: bytes) -> Callable[[Path], object]:
    """A series with other bytes in place of `find`."""

    def write(folder: Path) -> None:
        for file in write_series(folder):
            content = file.read_bytes()
            assert find in content
            file.write_bytes(content.replace(find, replacement, 1))

    return write


def cut(size: int) -> Callable[[Path], object]:
    """A series of which the first file ends after `size` bytes."""

    def write(folder: Path) -> None:
        file = write_series(folder)[0]
        file.write_bytes(file.read_bytes()[:size])

    return write


def random_bytes(name: str, count: int = 3000, head: bytes = b"") -> Callable[[Path], object]:
    def write(folder: Path) -> None:
        folder.mkdir()
        (folder / name).write_bytes(head + np.random.default_rng(0).bytes(count))

    return write


def linked(target: str, name: str = "ct.nii.gz") -> Callable[[Path], object]:
    def write(folder: Path) -> None:
        (folder / name).parent.mkdir(parents=True)
        (folder / name).symlink_to(target)

    return write


def pipe(folder: Path) -> None:
    folder.mkdir()
    os.mkfifo(folder / "ct.nii.gz")


def listening(folder: Path) -> None:
    folder.mkdir()
    here = Path.cwd()
    os.chdir(folder)  # the name of a socket is short
    with socket.socket(socket.AF_UNIX) as one:
        one.bind("ct.nii.gz")
    os.chdir(here)


def nested(folder: Path) -> None:
    """Deeper than Python's stack; the innermost holds a damaged CT."""
    folder.mkdir()
    inner = os.open(folder, os.O_RDONLY)
    for _ in range(1300):
        os.mkdir("d", dir_fd=inner)
        outer, inner = inner, os.open("d", os.O_RDONLY, dir_fd=inner)
        os.close(outer)
    damaged = os.open("ct.nii.gz", os.O_WRONLY | os.O_CREAT, dir_fd=inner)
    os.write(damaged, b"\x1f\x8b damaged")
    os.close(damaged)
    os.close(inner)


HOSTILE: dict[str, Callable[[Path], object]] = {
    "bits stored 0": attribute("BitsStored", 0),
    "bits stored 65535": attribute("BitsStored", 65535),
    "rows twice": attribute("Rows", [6, 6]),
    "rows 0": attribute("Rows", 0),
    "rows enormous": attribute("Rows", 65535),
    "spacing nan": attribute("PixelSpacing", ["nan", "nan"]),
    "spacing zero": attribute("PixelSpacing", [0, 0]),
    "slope infinite": attribute("RescaleSlope", "1e307"),
    "position enormous": attribute("ImagePositionPatient", [0, 0, "1e300"]),
    "frames in words": patched(
        b"\x28\x00\x10\x00US", b"\x28\x00\x08\x00IS\x04\x00abc \x28\x00\x10\x00US"
    ),
    "frames negative": attribute("NumberOfFrames", -5),
    "modality twice": attribute("Modality", ["CT", "MR"]),
    "modality of escapes": attribute("Modality", "\x1b[31mCT"),
    "unit of escapes": attribute("RescaleType", "\x1b]0;x\x07"),
    "no series": attribute("SeriesInstanceUID", None),
    "length odd": patched(b"\x28\x00\x10\x00US\x02\x00\x06\x00", b"\x28\x00\x10\x00US\x01\x00\x06"),
    "length none": patched(b"\x28\x00\x01\x01US\x02\x00\x10\x00", b"\x28\x00\x01\x01US\x00\x00"),
    "representation unknown": patched(b"\x28\x00\x10\x00US", b"\x28\x00\x10\x00ZZ"),
    "length undefined": patched(b"\x08\x00\x60\x00CS\x02\x00", b"\x08\x00\x60\x00UN\xff\xff"),
    "pixels cut off": cut(-20),
    "header cut off": cut(300),
    "noise of dicom": random_bytes("1.dcm", head=bytes(128) + b"DICM"),
    "noise": random_bytes("ct.nii.gz"),
    "noise of gzip": random_bytes("ct.nii.gz", head=b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\x03"),
    "empty": random_bytes("ct.nii.gz", 0),
    "pipe": pipe,
    "listening": listening,
    "zeros without end": linked("/dev/zero"),
    "passwords": linked("/etc/passwd"),
    "nowhere": linked("/nonexistent"),
    "itself": linked("ct.nii.gz"),
    "nested": nested,
}  # fmt: skip
"""Name of a folder → writes it. It may hold anything that must not be taken."""

LABELS: dict[str, Callable[[Path], object]] = {
    "pipe": os.mkfifo,
    "zeros without end": lambda path: path.symlink_to("/dev/zero"),
    "nowhere": lambda path: path.symlink_to("/nonexistent"),
    "folder": Path.mkdir,
    "noise": lambda path: path.write_bytes(np.random.default_rng(0).bytes(3000)),
}
"""What a mask or label map of a good CT is instead."""

DATASET_JSON: dict[str, Callable[[Path], object]] = {
    "nested": lambda path: path.write_text("[" * 100_000),
    "infinite": lambda path: path.write_text('{"labels": {"liver": Infinity}}'),
    "long": lambda path: path.write_text(" " * (1 << 21)),
    "no text": lambda path: path.write_bytes(b"\xff\xfe\xfa"),
}
"""What says the meaning of the labels of a good CT."""

NAMES = (
    b"M\xfcller", b"esc\x1b[31m", b"line\nend", b"[red]rich[/red]", b"bell\x07",
    "le\u202eft".encode(), b"'\"; $(touch pwned) <script>alert(1)</script>",
)  # fmt: skip
"""Folders of good CTs: Latin-1, and what terminals, shells, logs and pages might obey."""


def flatten(folder: Path) -> None:
    """Take `nested` away again: pytest's clean-up has no deeper a stack than others."""
    while (inner := folder / "d").is_dir():
        deeper = inner / "d"
        if deeper.is_dir():
            deeper.rename(folder / "next")
        shutil.rmtree(inner)
        if (folder / "next").is_dir():
            (folder / "next").rename(inner)


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """Good CTs, each beside something hostile or under a hostile name, and hostile ones alone."""
    root = tmp_path / "in"
    root.mkdir()
    before, settings.writing_validation_mode = settings.writing_validation_mode, IGNORE
    try:
        for name, write in HOSTILE.items():
            write(root / name)
    finally:
        settings.writing_validation_mode = before
    for seed, ct in enumerate(_good(root)):
        write_ct(ct, seed)
    for name, make in LABELS.items():
        write_mask(root / f"mask {name}" / "segmentations" / "spleen.nii.gz")
        make(root / f"mask {name}" / "segmentations" / "liver.nii.gz")
        make(root / f"map {name}" / "combined_labels.nii.gz")
    for name, make in DATASET_JSON.items():
        write_mask(root / f"json {name}" / "labelsTr" / "a.nii.gz")
        make(root / f"json {name}" / "dataset.json")
    (root / "loop").mkdir()
    (root / "loop" / "up").symlink_to("..")
    yield root
    flatten(root / "nested")


def _good(root: Path) -> Iterator[Path]:
    yield from (Path(os.fsdecode(os.fsencode(root) + b"/" + name), "ct.nii.gz") for name in NAMES)
    yield from (root / f"mask {name}" / "ct.nii.gz" for name in LABELS)
    yield from (root / f"map {name}" / "ct.nii.gz" for name in LABELS)
    yield from (root / f"json {name}" / "imagesTr" / "a.nii.gz" for name in DATASET_JSON)


def test_whatever_lies_beside_them_good_cts_are_imported(folder: Path, tmp_path: Path) -> None:
    home = tmp_path / "home"
    done = _import(home, folder, "--json")
    assert done.returncode == 0, done.stderr
    summary = json.loads(done.stdout)
    said = {note["source"]: note["reason"] for note in summary["refused"] + summary["skipped"]}
    for name in HOSTILE:
        reasons = [reason for source, reason in said.items() if source.startswith(name)]
        assert reasons, name
        assert not any("report it" in reason for reason in reasons), reasons
    for name in LABELS:
        assert any(source.startswith(f"mask {name}/segmentations/liver") for source in said), name
        assert any(source.startswith(f"map {name}/combined_labels") for source in said), name
    assert {f"json {name}/dataset.json" for name in DATASET_JSON} <= set(said)
    taken = {case["source"]: case["organs"] for case in summary["taken"]}
    assert len(taken) == len(list(_good(folder)))
    assert all(taken[f"mask {name}/ct.nii.gz"] == ["spleen"] for name in LABELS)
    with Catalog.open(f"sqlite:///{home}/catalog.sqlite") as catalog:
        assert {case.source for case in catalog.cases()} == set(taken)
    assert all(text.isprintable() for text in (*taken, *said, *said.values()))
    assert "M\\xfcller/ct.nii.gz" in taken


def test_nothing_in_a_name_or_header_reaches_the_terminal_raw(folder: Path, tmp_path: Path) -> None:
    done = _import(tmp_path / "home", folder)
    assert done.returncode == 0, done.stderr
    for output in (done.stdout, done.stderr):
        assert all(line.isprintable() for line in output.splitlines())
    again = _import(tmp_path / "home", Path(os.fsdecode(os.fsencode(folder) + b"/M\xfcller")))
    assert "1 were there already" in again.stdout, again.stderr
    missing = _import(tmp_path / "home", Path(os.fsdecode(os.fsencode(folder) + b"/\xff\x1b[31m")))
    assert missing.returncode == 2
    assert all(line.isprintable() for line in missing.stderr.splitlines())


def _import(home: Path, folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    command = ("-m", "atlas_flows.cli", "--home", str(home), "import", folder, "--dataset", "site")
    return subprocess.run(
        [sys.executable, *command, *options],
        capture_output=True, text=True, timeout=PATIENCE_S, check=False,
    )  # fmt: skip


# Case ids


def colliding() -> list[NDArray[np.int16]]:
    """Two CTs whose checksums begin with the same 48 bits; found in 90 s."""
    base = np.random.default_rng(3).integers(-900, 1500, (6, 6, 6)).astype(np.int16)
    base[:2] = -1000
    volumes = []
    for ends in ([218, -487, 3, 100], [865, -184, 1, 100]):
        voxels = base.copy(order="F")
        voxels.reshape(-1, order="F")[-4:] = ends
        volumes.append(voxels)
    return volumes


def test_cts_made_to_share_an_id_are_two_cases(tmp_path: Path) -> None:
    grid = VolumeGeometry.from_array((6, 6, 6), np.eye(4))
    for n, voxels in enumerate(colliding()):
        (tmp_path / "in" / str(n)).mkdir(parents=True)
        write_volume(tmp_path / "in" / str(n) / "ct.nii.gz", voxels, grid)
    files = sorted((tmp_path / "in").rglob("ct.nii.gz"))
    contents = [content_sha256(read_volume(file)) for file in files]
    assert contents[0][:12] == contents[1][:12]
    store = CaseStore(tmp_path / "store")
    with Catalog.open(f"sqlite:///{tmp_path}/catalog.sqlite") as catalog:
        summary = import_folder(tmp_path / "in", "site", catalog=catalog, store=store)
        assert len(summary.taken) == 2
        for case in catalog.cases():
            assert content_sha256(read_volume(store.ct_path(case.id))) == case.content_sha256
        assert {case.content_sha256 for case in catalog.cases()} == set(contents)
