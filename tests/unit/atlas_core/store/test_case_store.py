"""The case store: paths, and writes that are all or nothing."""

from __future__ import annotations

import hashlib
import os
import signal
import time
from pathlib import Path

import numpy as np
import pytest
from atlas_core.errors import InvalidInput, NotFound
from atlas_core.geometry import VolumeGeometry
from atlas_core.imaging import Volume, read_volume
from atlas_core.records import LabelSource, Reading
from atlas_core.store import CaseStore
from child_processes import PATIENCE_S, SPAWN, publish, start, write_and_hang

CASE = "lits_0123456789ab"
ENSEMBLE = "nnunet@0-1a2b3c4d+unet@0-99887766"
WHERE = (CASE, Reading.PAPER, ENSEMBLE)
GEOMETRY = VolumeGeometry.from_array((6, 5, 4), np.diag([-0.8, 0.8, 2.5, 1.0]))
HASH = hashlib.sha256(b"x").hexdigest()


def a_volume(seed: int = 0) -> Volume:
    values = np.random.default_rng(seed).integers(-1000, 1000, (6, 5, 4)).astype(np.int16)
    return Volume(np.asfortranarray(values), GEOMETRY)


def files(store: CaseStore) -> list[str]:
    return sorted(
        p.relative_to(store.root).as_posix() for p in store.root.rglob("*") if p.is_file()
    )


@pytest.fixture
def store(tmp_path: Path) -> CaseStore:
    return CaseStore(tmp_path / "store")


def write_prediction(store: CaseStore, text: str = "{}") -> bool:
    with store.new_prediction(CASE, Reading.PAPER, ENSEMBLE) as draft:
        draft.pseudo_label_path.write_bytes(b"label")
        draft.attention_path("liver").write_bytes(b"attention")
        draft.result_path.write_text(text)
    return draft.published


def cases_in(store: CaseStore) -> list[str]:
    """Ids of the cases that have a CT, sorted."""
    return sorted(path.parent.name for path in store.root.glob("cases/*/ct.nii.gz"))


def test_making_a_store_touches_nothing(store: CaseStore) -> None:
    assert cases_in(store) == []
    assert store.sweep() == 0
    assert not store.root.exists()


def test_a_ct_comes_back_as_it_was(store: CaseStore) -> None:
    ct = a_volume()
    sha256 = store.write_ct(CASE, ct)
    file = store.ct_path(CASE)
    assert hashlib.sha256(file.read_bytes()).hexdigest() == sha256
    back = read_volume(file)
    np.testing.assert_array_equal(back.voxels, ct.voxels)
    assert back.voxels.dtype == np.int16
    assert back.geometry.same_grid(ct.geometry)
    assert cases_in(store) == [CASE]
    assert files(store) == [f"cases/{CASE}/ct.nii.gz"]


def test_a_label_is_named_by_its_content(store: CaseStore) -> None:
    mask = Volume((a_volume().voxels > 0).astype(np.uint8), GEOMETRY)
    one = store.write_label(CASE, "liver", LabelSource.ORIGINAL, mask)
    again = store.write_label(CASE, "liver", LabelSource.ORIGINAL, mask)
    assert one == again
    assert one.path == f"cases/{CASE}/labels/liver/original-{one.sha256[:12]}.nii.gz"
    assert store.path(one.path) == store.label_path(CASE, "liver", LabelSource.ORIGINAL, one.sha256)
    assert hashlib.sha256(store.path(one.path).read_bytes()).hexdigest() == one.sha256
    assert len(files(store)) == 1


def test_a_prediction_appears_whole(store: CaseStore) -> None:
    with store.new_prediction(CASE, Reading.PAPER, ENSEMBLE) as draft:
        draft.pseudo_label_path.write_bytes(b"label")
        draft.attention_path("liver").write_bytes(b"attention")
        draft.result_path.write_text("{}")
        assert not store.prediction_dir(CASE, Reading.PAPER, ENSEMBLE).exists()
    assert draft.published
    assert store.has_prediction(CASE, Reading.PAPER, ENSEMBLE)
    assert not store.has_prediction(CASE, Reading.RELEASED, ENSEMBLE)
    folder = f"cases/{CASE}/predictions/paper/{ENSEMBLE}"
    assert files(store) == [
        f"{folder}/attention/liver.nii.gz",
        f"{folder}/pseudo_label.nii.gz",
        f"{folder}/result.json",
    ]
    assert store.pseudo_label_path(CASE, Reading.PAPER, ENSEMBLE).read_bytes() == b"label"
    assert store.attention_path(CASE, Reading.PAPER, ENSEMBLE, "liver").is_file()


def test_a_failed_prediction_leaves_nothing(store: CaseStore) -> None:
    with (
        pytest.raises(ZeroDivisionError),
        store.new_prediction(CASE, Reading.PAPER, ENSEMBLE) as draft,
    ):
        draft.result_path.write_text("{}")
        raise ZeroDivisionError
    assert not draft.published
    with (
        pytest.raises(NotFound, match=r"result\.json"),
        store.new_prediction(CASE, Reading.PAPER, ENSEMBLE),
    ):
        pass
    assert files(store) == []
    assert not store.has_prediction(CASE, Reading.PAPER, ENSEMBLE)


def test_the_first_prediction_stays(store: CaseStore) -> None:
    assert write_prediction(store, "first")
    assert not write_prediction(store, "second")
    assert store.result_path(CASE, Reading.PAPER, ENSEMBLE).read_text() == "first"
    assert list((store.root / ".incoming").iterdir()) == []


def test_a_later_result_stands_beside_the_earlier_one(store: CaseStore) -> None:
    key = (CASE, Reading.PAPER, ENSEMBLE)
    assert store.result_number(*key) == 0
    write_prediction(store, "first")
    with store.new_prediction(*key, after=1) as draft:
        draft.pseudo_label_path.write_bytes(b"label 2")
        draft.result_path.write_text("second")
        assert store.result_number(*key) == 1
    assert draft.published
    assert (draft.number, store.result_number(*key)) == (2, 2)
    assert store.pseudo_label_path(*key).read_bytes() == b"label 2"
    assert store.result_path(*key, 1).read_text() == "first"
    with store.new_prediction(*key, after=1) as late:
        late.result_path.write_text("also second")
    assert not late.published
    (store.prediction_dir(*key, 1).parent / f"{ENSEMBLE}~x").mkdir()
    assert store.delete_prediction(*key)
    assert store.result_number(*key) == 0


def test_of_many_writers_exactly_one_publishes(store: CaseStore) -> None:
    together, results = SPAWN.Barrier(6), SPAWN.Queue()
    processes = [start(publish, store.root, WHERE, n, together, results) for n in range(6)]
    outcomes = [results.get(timeout=PATIENCE_S) for _ in processes]
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0] * 6
    winners = [number for number, published in outcomes if published]
    assert len(winners) == 1
    folder = store.prediction_dir(CASE, Reading.PAPER, ENSEMBLE)
    assert (folder / "result.json").read_text() == str(winners[0])
    assert (folder / "pseudo_label.nii.gz").read_text() == str(winners[0])
    assert list((store.root / ".incoming").iterdir()) == []


def test_a_killed_writer_leaves_only_what_sweep_removes(store: CaseStore) -> None:
    ready = SPAWN.Event()
    process = start(write_and_hang, store.root, WHERE, ready)
    assert ready.wait(timeout=60)
    assert store.sweep() == 0, "the writer lives"
    assert process.pid is not None
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    assert not store.has_prediction(CASE, Reading.PAPER, ENSEMBLE)
    assert cases_in(store) == []
    assert store.sweep() == 1
    assert files(store) == []
    assert write_prediction(store)


def test_sweep_spares_other_machines_until_long_after(store: CaseStore) -> None:
    folder = store.root / ".incoming" / "other-host.1.abc"
    folder.mkdir(parents=True)
    assert store.sweep() == 0
    long_ago = time.time() - 25 * 3600
    os.utime(folder, (long_ago, long_ago))
    assert store.sweep(older_than_hours=26) == 0
    (folder / "still-writing").write_text("x")
    os.utime(folder, (long_ago, long_ago))
    assert store.sweep() == 0
    os.utime(folder / "still-writing", (long_ago, long_ago))
    assert store.sweep() == 1


def test_deleting(store: CaseStore) -> None:
    store.write_ct(CASE, a_volume())
    write_prediction(store)
    assert store.delete_prediction(CASE, Reading.PAPER, ENSEMBLE)
    assert not store.delete_prediction(CASE, Reading.PAPER, ENSEMBLE)
    assert cases_in(store) == [CASE]
    assert store.delete_case(CASE)
    assert not store.delete_case(CASE)
    assert files(store) == []


@pytest.mark.parametrize("bad", ["", "..", "../x", "a/b", "/etc", "a\\b", ".hidden", "a\0b", "a b"])
def test_names_cannot_leave_the_store(store: CaseStore, bad: str) -> None:
    for build in (
        lambda: store.ct_path(bad),
        lambda: store.label_path(CASE, bad, LabelSource.ORIGINAL, HASH),
        lambda: store.label_path(CASE, "liver", LabelSource.ORIGINAL, bad),
        lambda: store.attention_path(CASE, Reading.PAPER, ENSEMBLE, bad),
        lambda: store.prediction_dir(CASE, Reading.PAPER, bad),
        lambda: store.delete_case(bad),
    ):
        with pytest.raises(InvalidInput):
            build()


@pytest.mark.parametrize("bad", ["", "/etc/passwd", "../x", "cases/../../x"])
def test_paths_of_the_catalog_cannot_leave_the_store(store: CaseStore, bad: str) -> None:
    with pytest.raises(InvalidInput, match="leaves the case store"):
        store.path(bad)


def test_paths_go_to_the_catalog_and_back(store: CaseStore) -> None:
    path = store.ct_path(CASE)
    assert store.relative(path) == f"cases/{CASE}/ct.nii.gz"
    assert store.path(store.relative(path)) == path


def test_an_ensemble_of_many_models_still_makes_a_folder_name(store: CaseStore) -> None:
    many = "+".join(f"model_{n:02}@0-1a2b3c4d" for n in range(40))
    one = store.prediction_dir(CASE, Reading.PAPER, many).name
    other = store.prediction_dir(CASE, Reading.PAPER, many + "+x@0-1a2b3c4d").name
    assert len(one) < 255
    assert one != other
