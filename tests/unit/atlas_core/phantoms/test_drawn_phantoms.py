"""CTs drawn from label maps: what is drawn is what the map says, deformed; and it repeats."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from atlas_core.errors import Conflict, InvalidInput
from atlas_core.imaging import read_label, write_volume
from atlas_core.organs import read_scheme
from atlas_core.phantoms import (
    PHANTOM_ORGANS,
    Anatomy,
    Kind,
    Phantom,
    PhantomGrid,
    draw_phantom,
    make_phantom,
    read_anatomy,
    write_phantoms,
)
from atlas_core.phantoms.anatomy import Tissue

GRID = PhantomGrid(columns=56, slice_mm=6.0, axis_codes="RAS")
SOFT = (-60, 250)


def write_person(folder: Path, axis_codes: str = "LPS") -> Path:
    """The truth of a procedural phantom as a label map."""
    person = make_phantom(5, grid=PhantomGrid(columns=72, slice_mm=5.0, axis_codes=axis_codes))
    path = folder / "person.nii.gz"
    write_volume(path, person.truth, person.geometry)
    return path


@pytest.fixture(scope="module")
def person(tmp_path_factory: pytest.TempPathFactory) -> Anatomy:
    return read_anatomy(write_person(tmp_path_factory.mktemp("person")), PHANTOM_ORGANS)


@pytest.fixture(scope="module")
def drawn(person: Anatomy) -> Phantom:
    return draw_phantom(person, 3, grid=GRID)


def of(phantom: Phantom, organ: str) -> np.ndarray:
    return np.asarray(phantom.truth == PHANTOM_ORGANS[organ].label)


def test_an_anatomy_is_the_same_in_any_orientation_and_as_masks(
    person: Anatomy, tmp_path: Path
) -> None:
    turned = read_anatomy(write_person(tmp_path, "RAS"), PHANTOM_ORGANS)
    labels = read_label(tmp_path / "person.nii.gz")
    (tmp_path / "masks").mkdir()
    for organ in PHANTOM_ORGANS:
        mask = (labels.voxels == organ.label).astype(np.uint8)
        write_volume(tmp_path / "masks" / f"{organ.name}.nii.gz", mask, labels.geometry)
    masks = read_anatomy(tmp_path / "masks", PHANTOM_ORGANS)
    assert turned.sha256 == masks.sha256
    # Which neighbour is nearest may differ by the side that one counts from.
    assert turned.tissue.shape == person.tissue.shape
    assert (turned.tissue != person.tissue).mean() < 0.01


def test_organs_have_walls_and_lie_in_a_body_of_fat(person: Anatomy) -> None:
    there = set(np.unique(person.tissue))
    assert {Tissue.LIVER, Tissue.STOMACH_WALL, Tissue.STOMACH_FLUID, Tissue.FAT} <= there
    assert {Tissue.KIDNEY_LEFT_CORTEX, Tissue.KIDNEY_LEFT_MEDULLA} <= there
    assert ((person.tissue == Tissue.AIR) == (person.outside_mm > 0)).all()
    assert person.unknown == ()


def test_a_structure_that_nobody_knows_is_named(tmp_path: Path) -> None:
    (tmp_path / "segmentations").mkdir()
    block = np.zeros((60, 60, 40), np.uint8)
    block[10:50, 10:50, 5:35] = 1
    geometry = make_phantom(1, grid=PhantomGrid(16)).geometry
    grid = type(geometry).from_array(block.shape, np.diag([2.0, 2.0, 2.0, 1.0]))
    write_volume(tmp_path / "segmentations" / "third_arm.nii.gz", block, grid)
    found = read_anatomy(tmp_path, read_scheme("totalsegmentator_v2"))
    assert found.unknown == ("third_arm",)
    inner = read_anatomy(tmp_path / "segmentations", read_scheme("totalsegmentator_v2"))
    assert (inner.name, inner.sha256) == (tmp_path.name, found.sha256)
    assert (found.tissue == Tissue.MUSCLE).sum() == block.sum()


def test_what_is_no_anatomy_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="holds no anatomy"):
        read_anatomy(tmp_path, PHANTOM_ORGANS)


def test_a_drawn_ct_follows_from_its_seed(person: Anatomy, drawn: Phantom) -> None:
    again, other = draw_phantom(person, 3, grid=GRID), draw_phantom(person, 4, grid=GRID)
    assert (again.ct == drawn.ct).all()
    assert (again.truth == drawn.truth).all()
    assert other.ct.shape != drawn.ct.shape or (other.ct != drawn.ct).any()


def test_the_truth_shows_in_the_ct(drawn: Phantom) -> None:
    assert drawn.ct.shape == drawn.truth.shape
    for organ in ("liver", "spleen", "aorta", "kidney_left"):
        inside = drawn.ct[of(drawn, organ)]
        assert SOFT[0] < np.median(inside) < 400, organ
    outside = drawn.ct[~of(drawn, "liver") & (drawn.truth == 0)]
    assert (outside < -800).mean() > 0.2  # air around the body
    liver, spleen = (np.argwhere(of(drawn, organ)).mean(axis=0) for organ in ("liver", "spleen"))
    assert liver[0] > spleen[0]  # RAS: to the right


def test_many_are_many_bodies(person: Anatomy) -> None:
    volumes = [
        draw_phantom(person, seed, Kind.THICK_SLICES, GRID).volumes_ml() for seed in range(8)
    ]
    liver = [volume["liver"] for volume in volumes]
    assert max(liver) > 1.15 * min(liver)


def test_failures_are_drawn_too(person: Anatomy) -> None:
    child = draw_phantom(person, 3, Kind.CHILD, GRID)
    mirrored = draw_phantom(person, 3, Kind.SITUS_INVERSUS, GRID)
    cropped = draw_phantom(person, 3, Kind.CROPPED, GRID)
    whole = draw_phantom(person, 3, Kind.METAL, GRID)
    assert child.volumes_ml()["liver"] < 0.5 * whole.volumes_ml()["liver"]
    liver, spleen = (np.argwhere(of(mirrored, organ)).mean(axis=0) for organ in ("liver", "spleen"))
    assert liver[0] < spleen[0]
    assert cropped.ct.shape[2] <= 0.6 * whole.ct.shape[2]
    assert whole.ct.max() >= 2900
    with pytest.raises(InvalidInput, match="cannot be drawn"):
        draw_phantom(person, 3, Kind.MISSING_KIDNEY, GRID)


def test_a_folder_of_drawn_cts_says_whom_they_come_from(person: Anatomy, tmp_path: Path) -> None:
    entries = write_phantoms(tmp_path / "d", 2, 1, grid=GRID, anatomies=[person])
    assert [entry["anatomy"] for entry in entries] == ["person.nii.gz"] * 2
    index = json.loads((tmp_path / "d" / "phantoms.json").read_text())
    assert index["anatomies"] == [[person.name, person.sha256]]
    assert (tmp_path / "d" / "PHANTOM_00000002" / "segmentations" / "liver.nii.gz").is_file()
    with pytest.raises(Conflict, match="other phantoms"):
        write_phantoms(tmp_path / "d", 2, 1, grid=GRID)
