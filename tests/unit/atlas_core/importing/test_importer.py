"""Import: what is taken from which layout, and what is refused and why."""

from __future__ import annotations

import gzip
import itertools
import json
import os
import shutil
import signal
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from atlas_core.catalog import Catalog, warnings_by_case
from atlas_core.errors import InvalidInput, NotFound, Unavailable
from atlas_core.imaging import content_sha256, read_volume
from atlas_core.importing import ImportSummary, import_folder
from atlas_core.importing.summary import ImportProgress
from atlas_core.organs import ABDOMEN_ATLAS
from atlas_core.records import Dataset, LabelSource
from atlas_core.store import CaseStore
from child_processes import PATIENCE_S, SPAWN, import_all, import_until_killed, start
from numpy.typing import NDArray

SHAPE = (40, 24, 12)
AFFINE = np.array([[4.0, 0, 0, -80], [0, 4, 0, -50], [0, 0, 5, 100], [0, 0, 0, 1]])
"""160 mm from left to right, centred: wide enough for two kidneys."""


def ct_voxels(seed: int = 0) -> NDArray[np.int16]:
    """Air around a body of soft tissue."""
    noise = np.random.default_rng(seed).normal(0, 10, SHAPE)
    voxels = np.full(SHAPE, -1000.0)
    voxels[4:36, 4:20] = 40
    return (voxels + noise).astype(np.int16)


def save(path: Path, voxels: NDArray[Any], affine: NDArray[Any] = AFFINE, *, code: int = 1) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = nib.Nifti1Image(voxels, affine)
    image.set_sform(affine, code)
    image.set_qform(affine, code)
    nib.save(image, path)
    return path


def blob(*boxes: tuple[int, int, int], value: int = 1) -> NDArray[np.uint8]:
    """Cubes of 4×4×4 voxels at the given corners."""
    voxels = np.zeros(SHAPE, np.uint8)
    for x, y, z in boxes:
        voxels[x : x + 4, y : y + 4, z : z + 4] = value
    return voxels


@dataclass
class Site:
    """A catalog, a store, and a folder to import from."""

    folder: Path
    catalog: Catalog
    store: CaseStore

    def run(
        self, path: Path | None = None, preset: str | None = None, **more: Any
    ) -> ImportSummary:
        return import_folder(
            path or self.folder, "site", preset, catalog=self.catalog, store=self.store, **more
        )

    def labels(self) -> dict[str, int]:
        """Voxels by organ of the only case, checked against the files."""
        (case,) = self.catalog.cases()
        found = {}
        for label in self.catalog.labels(case.id, LabelSource.ORIGINAL):
            mask = read_volume(self.store.path(label.path))
            assert mask.geometry.same_grid(case.geometry)
            assert set(np.unique(mask.voxels)) <= {0, 1}
            assert int(mask.voxels.sum()) == label.voxels
            assert label.volume_ml == pytest.approx(label.voxels * case.geometry.voxel_ml)
            found[label.organ] = label.voxels
        return found


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    folder = tmp_path / "in"
    folder.mkdir()
    with Catalog.open(f"sqlite:///{tmp_path}/catalog.sqlite") as catalog:
        yield Site(folder, catalog, CaseStore(tmp_path / "store"))


def sources(notes: Any) -> list[str]:
    return [note.source for note in notes]


def only_reason(summary: ImportSummary) -> str:
    (note,) = summary.refused
    return note.reason


# What is taken


def test_a_single_file(site: Site) -> None:
    file = save(site.folder / "scan.nii.gz", ct_voxels())
    summary = site.run(file)
    (taken,) = summary.taken
    case = site.catalog.case(taken.case_id)
    assert (taken.source, case.source, case.dataset) == ("scan.nii.gz", "scan.nii.gz", "site")
    assert case.id == f"site_{case.content_sha256[:32]}"
    stored = read_volume(site.store.ct_path(case.id))
    np.testing.assert_array_equal(stored.voxels, ct_voxels())
    assert stored.geometry == case.geometry


def test_cases_of_old_catalogs_keep_their_short_ids(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also when their CT comes again, with another label, and when its file was lost."""
    save(site.folder / "ct.nii.gz", ct_voxels())
    with monkeypatch.context() as old:
        old.setattr("atlas_core.importing.importer.ID_DIGITS", 12)
        (taken,) = site.run().taken
    assert len(taken.case_id) == len("site_") + 12
    site.store.ct_path(taken.case_id).unlink()
    save(site.folder / "segmentations" / "liver.nii.gz", blob((8, 8, 4)))
    (present,) = site.run().present
    assert (present.case_id, present.organs) == (taken.case_id, ("liver",))
    assert site.store.ct_path(taken.case_id).is_file()


def test_an_id_that_another_ct_has_is_refused_and_nothing_of_it_lost(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("atlas_core.importing.importer.ID_DIGITS", 1)
    for seed in range(17):
        save(site.folder / f"{seed:02}.nii.gz", ct_voxels(seed))
    summary = site.run(workers=1)
    assert summary.refused
    assert len(summary.taken) + len(summary.refused) == 17
    assert all("belongs to another CT" in note.reason for note in summary.refused)
    for case in site.catalog.cases():
        assert content_sha256(read_volume(site.store.ct_path(case.id))) == case.content_sha256


@pytest.mark.parametrize("until", ["record_scan", "check_labels"])
def test_what_is_said_of_a_case_is_said_although_its_import_ended_before(
    until: str, site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed after the case is there: the next import says what the first one had found."""
    save(site.folder / "a" / "ct.nii.gz", ct_voxels())
    site.run()
    turned = AFFINE @ np.diag([-1.0, 1, 1, 1])  # the same voxels, another header
    save(site.folder / "b" / "ct.nii.gz", ct_voxels(), turned)
    save(site.folder / "b" / "segmentations" / "liver.nii.gz", blob((8, 8, 4)), turned)

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(f"atlas_core.importing.importer.{until}", killed)
        with pytest.raises(KeyboardInterrupt):
            site.run()
    first, copy = sorted(site.catalog.cases(), key=lambda case: case.imported_at)
    second = site.run()
    assert len(second.present) == 2
    said = warnings_by_case(site.catalog, [copy.id])[copy.id]
    assert any(first.id in warning.text for warning in said)
    assert any(warning.organ == "liver" for warning in said)


def test_a_folder_of_loose_files_compressed_or_not_at_any_depth(site: Site) -> None:
    save(site.folder / "a.nii.gz", ct_voxels(1))
    save(site.folder / "deep" / "er" / "b.nii", ct_voxels(2))
    summary = site.run()
    assert sources(summary.taken) == ["a.nii.gz", "deep/er/b.nii"]
    assert not (summary.refused or summary.skipped or summary.warnings or summary.present)


@pytest.mark.parametrize("orientation", ["RAS", "LPS", "IPL", "ASR"])
def test_any_axis_order_is_kept(site: Site, orientation: str) -> None:
    turned = nib.Nifti1Image(ct_voxels(), AFFINE).as_reoriented(
        nib.orientations.ornt_transform(
            nib.orientations.axcodes2ornt("RAS"), nib.orientations.axcodes2ornt(orientation)
        )
    )
    save(site.folder / "x.nii.gz", np.asarray(turned.dataobj), turned.affine)
    (taken,) = site.run().taken
    stored = read_volume(site.store.ct_path(taken.case_id))
    assert stored.geometry.axis_codes == orientation
    np.testing.assert_array_equal(stored.voxels, np.asarray(turned.dataobj))


def test_values_survive_whatever_their_type(site: Site) -> None:
    halves = ct_voxels().astype(np.float32) + np.float32(0.5)
    save(site.folder / "halves.nii.gz", halves)
    wide = ct_voxels(2).astype(np.int32)
    wide[0, 0, 0] = 40000  # more than int16 holds
    save(site.folder / "wide.nii.gz", wide)
    taken = {case.source: case.case_id for case in site.run().taken}
    for name, voxels in (("halves.nii.gz", halves), ("wide.nii.gz", wide)):
        stored = read_volume(site.store.ct_path(taken[name])).voxels
        np.testing.assert_array_equal(stored, voxels)


def abdomen_atlas_case(folder: Path, seed: int = 0) -> None:
    save(folder / "ct.nii.gz", ct_voxels(seed))
    save(folder / "segmentations" / "liver.nii.gz", blob((8, 8, 4)))
    save(folder / "segmentations" / "spleen.nii.gz", blob())
    save(folder / "combined_labels.nii.gz", blob((8, 8, 4), value=5) + blob((28, 8, 4), value=1))


def test_case_folders(site: Site) -> None:
    abdomen_atlas_case(site.folder / "BDMAP_1")
    save(site.folder / "BDMAP_1" / "segmentations" / "colon.nii.gz", blob((0, 0, 0)))
    summary = site.run()
    assert sources(summary.taken) == ["BDMAP_1/ct.nii.gz"]
    assert site.labels() == {"liver": 64, "spleen": 0, "aorta": 64}
    assert not summary.refused


def test_an_absent_organ_is_a_label_where_it_was_annotated(site: Site) -> None:
    """The preset says that all nine are annotated: not in the map means not in the patient."""
    save(site.folder / "ct.nii.gz", ct_voxels())
    save(site.folder / "combined_labels.nii.gz", blob((8, 8, 4), value=5))
    site.run(preset="abdomenatlas")
    assert site.labels() == dict.fromkeys(ABDOMEN_ATLAS.names, 0) | {"liver": 64}
    assert site.catalog.dataset("site").organs == tuple(sorted(ABDOMEN_ATLAS.names))


def test_a_partly_annotated_dataset_says_nothing_of_absent_organs(site: Site) -> None:
    save(site.folder / "imagesTr" / "f_0000.nii.gz", ct_voxels())
    save(site.folder / "labelsTr" / "f.nii.gz", blob((8, 8, 4), value=13))
    site.run(preset="flare23")
    assert site.labels() == {"kidney_left": 64}


def test_totalsegmentator_folders(site: Site) -> None:
    masks = site.folder / "s0001" / "segmentations"
    save(site.folder / "s0001" / "ct.nii.gz", ct_voxels())
    save(masks / "gallbladder.nii.gz", blob((8, 8, 4), value=255))
    save(masks / "inferior_vena_cava.nii.gz", blob((16, 8, 4)))
    save(masks / "kidney_left.nii.gz", blob((8, 8, 4)))
    save(masks / "kidney_cyst_left.nii.gz", blob((8, 8, 8)))
    save(masks / "kidney_cyst_right.nii.gz", blob((28, 8, 8)))
    save(masks / "rib_left_1.nii.gz", blob((0, 0, 0)))
    summary = site.run(preset="totalsegmentator")
    # A cyst belongs to its kidney, but no cyst makes a kidney.
    assert site.labels() == {"gall_bladder": 64, "postcava": 64, "kidney_left": 128}
    assert not summary.warnings


def test_masks_that_are_no_organs_of_ours_are_noted(site: Site) -> None:
    save(site.folder / "c" / "ct.nii.gz", ct_voxels())
    save(site.folder / "c" / "segmentations" / "duodenum.nii.gz", blob((8, 8, 4)))
    save(site.folder / "c" / "segmentations" / "abdominal_aorta.nii.gz", blob((16, 8, 4)))
    save(site.folder / "d" / "ct.nii.gz", ct_voxels(1))
    save(site.folder / "d" / "segmentations" / "colon.nii.gz", blob((16, 8, 4)))
    summary = site.run()
    assert [case.organs for case in summary.taken] == [("aorta",), ()]
    (note,) = summary.warnings
    assert "2 cases" in note.reason
    assert "colon, duodenum" in note.reason


def test_one_label_for_both_kidneys_is_split_by_side(site: Site) -> None:
    """KiTS: kidney 1, tumour 2, cyst 3; its axes are neither RAS nor in that order."""
    label = blob((4, 8, 2)) + blob((30, 8, 2)) + blob((30, 12, 2), value=2)
    label += blob((30, 8, 6), value=3)
    affine = np.array([[0, 0, 5.0, -30], [0, -4, 0, 20], [-4, 0, 0, 78], [0, 0, 0, 1]])
    case = site.folder / "data" / "case_00072"
    voxels = ct_voxels()
    save(case / "imaging.nii.gz", voxels, affine)
    save(case / "segmentation.nii.gz", label, affine)
    # File axis k runs from left to right here: both lie in the same half of i and apart in k.
    swap = np.swapaxes
    save(case / "imaging.nii.gz", swap(voxels, 0, 2), affine)
    save(case / "segmentation.nii.gz", swap(label, 0, 2), affine)
    summary = site.run(preset="kits")
    assert sources(summary.taken) == ["data/case_00072/imaging.nii.gz"]
    assert site.labels() == {"kidney_left": 64, "kidney_right": 192}


def nnunet(folder: Path, labels: Mapping[str, Any]) -> None:
    save(folder / "imagesTr" / "liver_001_0000.nii.gz", ct_voxels(1))
    save(folder / "imagesTr" / "liver_002_0000.nii.gz", ct_voxels(2))
    save(folder / "imagesTs" / "liver_003_0000.nii.gz", ct_voxels(3))
    save(folder / "labelsTr" / "liver_001.nii.gz", blob((8, 8, 4)) + blob((8, 8, 8), value=2))
    save(folder / "labelsTr" / "liver_002.nii.gz", blob())
    (folder / "dataset.json").write_text(json.dumps({"labels": labels}))
    (folder / "imagesTr" / "._liver_001_0000.nii.gz").write_bytes(b"left by a Mac")


def test_nnunet_raw_by_its_own_names(site: Site) -> None:
    nnunet(site.folder / "Dataset003", {"background": 0, "Liver": 1, "duodenum": 2})
    summary = site.run()
    assert [(case.source, case.organs) for case in summary.taken] == [
        ("Dataset003/imagesTr/liver_001_0000.nii.gz", ("liver",)),
        ("Dataset003/imagesTr/liver_002_0000.nii.gz", ("liver",)),
        ("Dataset003/imagesTs/liver_003_0000.nii.gz", ()),
    ]
    assert not summary.refused
    assert site.catalog.dataset("site").organs == ("liver",)


def test_nnunet_raw_by_a_preset_joins_the_tumour(site: Site) -> None:
    nnunet(site.folder, {"background": 0, "liver": 1, "cancer": 2})
    case = site.run(preset="msd-liver").taken[0]
    (label,) = site.catalog.labels(case.case_id)
    assert (label.organ, label.voxels) == ("liver", 128)


def test_four_digits_are_no_channel_where_labels_bear_them(site: Site) -> None:
    for number in (0, 1):
        save(site.folder / "imagesVa" / f"amos_{number:04}.nii.gz", ct_voxels(number))
        save(site.folder / "labelsVa" / f"amos_{number:04}.nii.gz", blob((8, 8, 4), value=6))
    summary = site.run(preset="amos22")
    assert [len(case.organs) for case in summary.taken] == [9, 9]


def test_a_second_channel_is_no_ct(site: Site) -> None:
    save(site.folder / "imagesTr" / "x_0000.nii.gz", ct_voxels(1))
    save(site.folder / "imagesTr" / "x_0001.nii.gz", ct_voxels(2))
    save(site.folder / "imagesTr" / "y_0000.nii.gz", ct_voxels(3))
    summary = site.run()
    assert sources(summary.taken) == ["imagesTr/y_0000.nii.gz"]
    (note,) = summary.skipped
    assert "2 channels" in note.reason


@pytest.mark.parametrize(
    ("preset", "ct", "label"),
    [
        ("lits", "volume-7.nii", "segmentation-7.nii"),
        ("ct-org", "volume-7.nii.gz", "labels-7.nii.gz"),
        ("btcv", "img/img0007.nii.gz", "label/label0007.nii.gz"),
        ("pancreas-ct", "CT/PANCREAS_0007.nii.gz", "labels/label0007.nii.gz"),
        ("abdomenct-1k", "Images/Case_00007_0000.nii.gz", "Masks/Case_00007.nii.gz"),
        ("word", "images/word_0007.nii.gz", "labels/word_0007.nii.gz"),
    ],
)
def test_pairs_by_the_names_of_public_datasets(
    site: Site, preset: str, ct: str, label: str
) -> None:
    save(site.folder / ct, ct_voxels())
    save(site.folder / label, blob((8, 8, 4)))
    summary = site.run(preset=preset)
    assert sources(summary.taken) == [ct]
    assert 64 in site.labels().values()
    assert not (summary.skipped or summary.refused)


def test_a_paired_label_without_a_preset_is_not_guessed(site: Site) -> None:
    save(site.folder / "volume-7.nii", ct_voxels())
    save(site.folder / "segmentation-7.nii", blob((8, 8, 4)))
    summary = site.run()
    assert site.labels() == {}
    (note,) = summary.warnings
    assert note.source == "segmentation-7.nii"
    assert "--preset" in note.reason


def test_the_preset_of_a_dataset_is_remembered(site: Site) -> None:
    save(site.folder / "volume-1.nii", ct_voxels(1))
    save(site.folder / "segmentation-1.nii", blob((8, 8, 4)))
    site.run(preset="lits")
    save(site.folder / "volume-2.nii", ct_voxels(2))
    save(site.folder / "segmentation-2.nii", blob((8, 8, 4)))
    (taken,) = site.run().taken
    assert taken.organs == ("liver",)


def test_a_preset_of_ones_own_is_asked_for_again(site: Site) -> None:
    save(site.folder / "volume-1.nii", ct_voxels(1))
    save(site.folder / "segmentation-1.nii", blob((8, 8, 4)))
    own = site.folder.parent / "ours.yaml"
    own.write_text("{title: Ours, licence: CC0-1.0, labels: {1: liver}}")
    site.run(preset=str(own))
    with pytest.raises(NotFound, match=r"dataset \w+ was imported with preset ours.*--preset FILE"):
        site.run()


def test_a_label_in_any_axis_order_is_turned_slab_by_slab(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the CT, too: in every pair of orders the label lies where it lay."""
    monkeypatch.setattr("atlas_core.importing.original_labels.SLAB_VOXELS", 700)
    orders = ["RAS", "LPS", "IPL", "ASR", "SLP", "PIR"]
    label = np.random.default_rng(0).integers(0, 2, SHAPE).astype(np.uint8)
    for number, (ct_order, order) in enumerate(itertools.product(orders, orders)):
        case = site.folder / f"{number}"
        save_in_order(case / "ct.nii.gz", ct_voxels(number), ct_order)
        save_in_order(case / "segmentations" / "liver.nii.gz", label, order)
    summary = site.run()
    assert len(summary.taken) == 36
    assert not (summary.refused or summary.warnings)
    for case in site.catalog.cases():
        (stored,) = site.catalog.labels(case.id, LabelSource.ORIGINAL)
        mask = read_volume(site.store.path(stored.path))
        assert mask.geometry == case.geometry
        turned = mask.geometry.axis_map.to_canonical(mask.voxels)
        np.testing.assert_array_equal(turned, label)


def save_in_order(path: Path, voxels: NDArray[Any], order: str) -> None:
    image = nib.Nifti1Image(voxels, AFFINE)
    change = nib.orientations.ornt_transform(
        nib.orientations.axcodes2ornt("RAS"), nib.orientations.axcodes2ornt(order)
    )
    turned = image.as_reoriented(change)
    save(path, np.asarray(turned.dataobj), turned.affine)


def test_a_mask_in_another_axis_order_is_turned(site: Site) -> None:
    save(site.folder / "ct.nii.gz", ct_voxels())
    flipped = AFFINE @ np.diag([-1.0, 1, 1, 1])
    flipped[:3, 3] = (AFFINE @ [SHAPE[0] - 1, 0, 0, 1])[:3]
    save(site.folder / "segmentations" / "liver.nii.gz", blob((8, 8, 4))[::-1], flipped)
    summary = site.run()
    assert not (summary.refused or summary.warnings)
    (case,) = site.catalog.cases()
    (label,) = site.catalog.labels(case.id)
    np.testing.assert_array_equal(read_volume(site.store.path(label.path)).voxels, blob((8, 8, 4)))


# The same again


def test_import_again_changes_nothing(site: Site) -> None:
    abdomen_atlas_case(site.folder / "BDMAP_1")
    first = site.run()
    before = {p: p.stat().st_mtime_ns for p in site.store.root.rglob("*") if p.is_file()}
    again = site.run()
    assert [case.case_id for case in again.present] == [case.case_id for case in first.taken]
    assert again.taken == ()
    assert {p: p.stat().st_mtime_ns for p in site.store.root.rglob("*") if p.is_file()} == before
    assert len(site.labels()) == 3


def test_the_same_content_is_one_case_under_any_name_type_or_dataset(site: Site) -> None:
    save(site.folder / "a.nii.gz", ct_voxels())
    save(site.folder / "b.nii", ct_voxels().astype(np.float64))
    summary = site.run(workers=1)
    assert (sources(summary.taken), sources(summary.present)) == (["a.nii.gz"], ["b.nii"])
    other = import_folder(site.folder, "other", catalog=site.catalog, store=site.store, workers=1)
    assert {case.case_id for case in other.present} == {summary.taken[0].case_id}
    assert len(site.catalog.cases()) == 1


def test_labels_may_come_later_and_the_first_one_stays(site: Site) -> None:
    save(site.folder / "c" / "ct.nii.gz", ct_voxels())
    save(site.folder / "c" / "segmentations" / "liver.nii.gz", blob((8, 8, 4)))
    site.run()
    save(site.folder / "c" / "segmentations" / "liver.nii.gz", blob())
    save(site.folder / "c" / "segmentations" / "aorta.nii.gz", blob((16, 8, 4)))
    (present,) = site.run().present
    assert present.organs == ("aorta",)
    assert site.labels() == {"liver": 64, "aorta": 64}


def test_a_ct_that_was_lost_from_the_store_is_restored(site: Site) -> None:
    save(site.folder / "a.nii.gz", ct_voxels())
    (taken,) = site.run().taken
    site.store.ct_path(taken.case_id).unlink()
    summary = site.run()
    assert site.store.ct_path(taken.case_id).is_file()
    assert "restored" in summary.warnings[0].reason


def test_a_label_that_was_lost_from_the_store_is_restored(site: Site) -> None:
    abdomen_atlas_case(site.folder / "BDMAP_1")
    (taken,) = site.run().taken
    label = site.store.path(site.catalog.labels(taken.case_id)[0].path)
    before = label.read_bytes()
    label.unlink()
    site.run()
    assert label.read_bytes() == before
    assert len(site.labels()) == 3


# What is refused


def damage_4d(file: Path) -> None:
    save(file, np.stack([ct_voxels(), ct_voxels()], axis=-1))


def damage_rgb(file: Path) -> None:
    colour = np.zeros(SHAPE, np.dtype([("R", "u1"), ("G", "u1"), ("B", "u1")]))
    save(file, colour)


def damage_nan_affine(file: Path) -> None:
    patch_header(file, 280, struct.pack("<f", float("nan")))


def damage_degenerate_affine(file: Path) -> None:
    # sform rows x, y, z (offsets 280, 296, 312): the first axis has no length
    patch_header(file, 280, struct.pack("<f", 0.0))


def damage_no_affine(file: Path) -> None:
    patch_header(file, 252, struct.pack("<hh", 0, 0))


def damage_truncated(file: Path) -> None:
    data = save(file, ct_voxels()).read_bytes()
    file.write_bytes(data[: len(data) // 2])


def damage_absurd_size(file: Path) -> None:
    patch_header(file, 40, struct.pack("<8h", 3, 32767, 32767, 32767, 1, 1, 1, 1))


def damage_not_nifti(file: Path) -> None:
    file.write_bytes(gzip.compress(b"hello" * 200))


def damage_empty(file: Path) -> None:
    file.write_bytes(b"")


def damage_nan_voxels(file: Path) -> None:
    voxels = ct_voxels().astype(np.float32)
    voxels[3, 3, 3] = np.nan
    save(file, voxels)


def patch_header(file: Path, offset: int, data: bytes) -> None:
    raw = bytearray(gzip.decompress(save(file, ct_voxels()).read_bytes()))
    raw[offset : offset + len(data)] = data
    file.write_bytes(gzip.compress(bytes(raw)))


@pytest.mark.parametrize(
    ("damage", "word"),
    [
        (damage_4d, "4 axes"),
        (damage_rgb, "RGB"),
        (damage_nan_affine, "finite"),
        (damage_degenerate_affine, "degenerate"),
        (damage_no_affine, "position|affine|orientation"),
        (damage_truncated, "ends|cut|truncated"),
        (damage_absurd_size, "claims|voxels"),
        (damage_not_nifti, "NIfTI"),
        (damage_empty, "NIfTI|ends|cut|empty"),
        (damage_nan_voxels, "NaN|finite"),
    ],
)
def test_one_bad_file_is_named_with_its_reason_and_the_rest_is_taken(
    site: Site, damage: Any, word: str
) -> None:
    save(site.folder / "good.nii.gz", ct_voxels())
    damage(site.folder / "bad.nii.gz")
    summary = site.run()
    assert sources(summary.taken) == ["good.nii.gz"]
    (note,) = summary.refused
    assert note.source == "bad.nii.gz"
    assert any(option.lower() in note.reason.lower() for option in word.split("|")), note.reason


def test_an_absurd_spacing_is_refused_with_what_to_correct(site: Site) -> None:
    """100 mm for every voxel: a few kilobytes that are gigabytes on the grid of a model."""
    save(site.folder / "metres.nii.gz", ct_voxels(), np.diag([100.0, 100.0, 100.0, 1.0]))
    reason = only_reason(site.run(force=True))
    assert "4000×2400×1200 mm" in reason
    assert "correct the spacing" in reason
    assert not site.catalog.cases()


def test_an_mr_is_refused_unless_forced(site: Site) -> None:
    noise = np.random.default_rng(0).normal(300, 100, SHAPE)
    save(site.folder / "mr.nii.gz", np.abs(noise).astype(np.int16))
    reason = only_reason(site.run())
    assert "Hounsfield" in reason
    assert "--force" in reason
    forced = site.run(force=True)
    assert sources(forced.taken) == ["mr.nii.gz"]
    assert sources(forced.warnings) == ["mr.nii.gz"]


def test_a_ct_without_its_intercept_is_refused(site: Site) -> None:
    save(site.folder / "raw.nii.gz", (ct_voxels() + 1100).astype(np.uint16))
    assert "intercept (about -1024) was never added" in only_reason(site.run())


def test_label_maps_are_skipped_among_loose_files_and_never_forced(site: Site) -> None:
    save(site.folder / "ct_1.nii.gz", ct_voxels())
    save(site.folder / "prediction.nii.gz", blob((8, 8, 4), value=117))
    save(site.folder / "float.nii.gz", blob((8, 8, 4)).astype(np.float32))
    for force in (False, True):
        summary = site.run(force=force)
        assert sources(summary.skipped) == ["float.nii.gz", "prediction.nii.gz"]
        assert not summary.refused
    assert "label values" in only_reason(site.run(site.folder / "prediction.nii.gz"))


def test_a_mask_on_another_grid_is_refused_with_both_grids_or_resampled(site: Site) -> None:
    save(site.folder / "ct.nii.gz", ct_voxels())
    finer = AFFINE @ np.diag([0.5, 0.5, 0.5, 1.0])
    finer[:3, 3] = AFFINE[:3, 3] - AFFINE[:3, :3] @ np.full(3, 0.25)
    fine = blob((8, 8, 4)).repeat(2, 0).repeat(2, 1).repeat(2, 2)
    save(site.folder / "segmentations" / "liver.nii.gz", fine, finer)
    save(site.folder / "segmentations" / "aorta.nii.gz", blob((16, 8, 4)))
    summary = site.run()
    (note,) = summary.refused
    assert note.source == "segmentations/liver.nii.gz"
    assert "40×24×12" in note.reason
    assert "80×48×24" in note.reason
    assert "--resample" in note.reason
    assert site.labels() == {"aorta": 64}, "the CT and its other mask are taken"
    again = site.run(resample=True)
    assert not again.refused
    assert "resampled" in again.warnings[0].reason
    assert site.labels() == {"aorta": 64, "liver": 64}


def test_a_mask_elsewhere_in_space_is_not_resampled_into_nothing(site: Site) -> None:
    save(site.folder / "ct.nii.gz", ct_voxels())
    away = AFFINE.copy()
    away[2, 3] += 5000
    save(site.folder / "segmentations" / "liver.nii.gz", blob((8, 8, 4)), away)
    assert "nothing of the label lies in the CT" in only_reason(site.run(resample=True))
    assert site.labels() == {}


def test_unknown_label_values_are_refused_by_name(site: Site) -> None:
    save(site.folder / "volume-1.nii", ct_voxels())
    save(site.folder / "segmentation-1.nii", blob((8, 8, 4), value=7) + blob((20, 8, 4)))
    summary = site.run(preset="lits")
    (note,) = summary.refused
    assert note.source == "segmentation-1.nii"
    assert "7" in note.reason
    assert sources(summary.taken) == ["volume-1.nii"]
    assert site.labels() == {}


@pytest.mark.parametrize(
    ("voxels", "word"),
    [
        (blob((8, 8, 4)) + blob((20, 8, 4), value=2), "one structure"),
        (blob((8, 8, 4)).astype(np.float32) * 0.5, "whole numbers"),
        (np.stack([blob(), blob()], axis=-1), "4 axes"),
    ],
)
def test_masks_that_are_no_masks_are_refused(site: Site, voxels: Any, word: str) -> None:
    save(site.folder / "ct.nii.gz", ct_voxels())
    save(site.folder / "segmentations" / "liver.nii.gz", voxels)
    assert word in only_reason(site.run())
    assert site.labels() == {}


def test_masks_without_a_ct_and_other_formats_are_said(site: Site) -> None:
    save(site.folder / "s1" / "segmentations" / "liver.nii.gz", blob((8, 8, 4)))
    (site.folder / "x.mgz").write_bytes(b"MGZ")
    summary = site.run()
    assert {note.source: note.reason.split(":")[0] for note in summary.skipped} == {
        "s1/segmentations/liver.nii.gz": "a mask without a CT",
        "x.mgz": ".mgz files are not read; convert it to NIfTI",
    }


def test_a_broken_dataset_json_leaves_the_cts(site: Site) -> None:
    nnunet(site.folder, {})
    (site.folder / "dataset.json").write_text("{")
    summary = site.run()
    assert len(summary.taken) == 3
    assert set(sources(summary.refused)) == {"dataset.json"}


def test_nothing_there(site: Site) -> None:
    with pytest.raises(InvalidInput, match="nothing to import"):
        site.run()
    with pytest.raises(NotFound):
        site.run(site.folder / "nothere")
    (site.folder / "one.dcm").write_bytes(b"\0" * 128 + b"DICM")
    assert "pass its folder" in site.run(site.folder / "one.dcm").skipped[0].reason
    (site.folder / "one.dcm").unlink()
    save(site.folder / "a.nii.gz", ct_voxels())
    with pytest.raises(NotFound, match="nothere"):
        site.run(preset="nothere")
    with pytest.raises(NotFound):
        site.catalog.dataset("nothere")


def test_links_in_a_circle_are_walked_once(site: Site) -> None:
    save(site.folder / "d" / "a.nii.gz", ct_voxels())
    (site.folder / "d" / "up").symlink_to(site.folder, target_is_directory=True)
    assert sources(site.run().taken) == ["d/a.nii.gz"]


def test_a_store_that_is_a_file_stops_the_import(site: Site) -> None:
    save(site.folder / "a.nii.gz", ct_voxels())
    site.store.root.write_text("not a folder")
    with pytest.raises(Unavailable, match="case store"):
        site.run()
    assert site.catalog.cases() == []


# How it goes


def test_progress_counts_every_candidate(site: Site) -> None:
    for number in range(3):
        save(site.folder / f"{number}.nii.gz", ct_voxels(number))
    (site.folder / "3.nii.gz").write_bytes(b"bad")
    seen: list[ImportProgress] = []
    site.run(on_progress=seen.append)
    assert [(p.done, p.total, p.source) for p in seen] == [
        (n + 1, 4, f"{n}.nii.gz") for n in range(4)
    ]


def test_an_interrupted_import_begins_nothing_more(site: Site) -> None:
    for number in range(12):
        save(site.folder / f"{number:02}.nii.gz", ct_voxels(number))

    def interrupt(progress: ImportProgress) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        site.run(on_progress=interrupt, workers=1)
    assert len(site.catalog.cases()) < 12


def test_an_import_that_was_killed_is_completed_by_the_next(site: Site, tmp_path: Path) -> None:
    for number in range(8):
        abdomen_atlas_case(site.folder / f"BDMAP_{number}", number)
    third = SPAWN.Event()
    url = f"sqlite:///{tmp_path}/catalog.sqlite"
    process = start(import_until_killed, site.folder, url, site.store.root, third)
    assert third.wait(timeout=60)
    assert process.pid is not None
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    for case in site.catalog.cases():  # what the catalog knows is whole
        assert len(site.catalog.labels(case.id)) == 3
        read_volume(site.store.ct_path(case.id))
    summary = site.run()
    assert len(summary.taken) + len(summary.present) == 8
    assert len(site.catalog.cases()) == 8
    assert not summary.refused
    assert list((site.store.root / ".incoming").iterdir()) == []


def test_two_imports_at_once_take_each_case_once(site: Site, tmp_path: Path) -> None:
    for number in range(6):
        save(site.folder / f"{number}.nii.gz", ct_voxels(number))
    url = f"sqlite:///{tmp_path}/catalog.sqlite"
    processes = [start(import_all, site.folder, url, site.store.root, 6) for _ in range(3)]
    for process in processes:
        process.join(timeout=PATIENCE_S)
    assert [process.exitcode for process in processes] == [0, 0, 0]
    assert len(site.catalog.cases()) == 6


def test_no_text_of_the_header_reaches_the_store(site: Site) -> None:
    image = nib.Nifti1Image(ct_voxels(), AFFINE)
    image.header["descrip"] = b"Doe^Jane"
    image.header.extensions.append(nib.nifti1.Nifti1Extension("comment", b"born 1950"))
    nib.save(image, site.folder / "a.nii.gz")
    (taken,) = site.run().taken
    raw = gzip.decompress(site.store.ct_path(taken.case_id).read_bytes())
    assert b"Doe" not in raw
    assert b"1950" not in raw


# Real volumes


def test_a_mixed_folder_of_real_files(site: Site, shared_data: Path) -> None:
    summary = site.run(shared_data / "TotalSegmentator" / "tests" / "reference_files")
    assert sources(summary.taken) == [
        "aorta_report/test_result/models/ct_cropped.nii.gz",
        "example_ct.nii.gz",
        "example_ct_dicom",
        "example_ct_sm.nii.gz",
    ]
    assert sources(summary.refused) == ["example_mr_sm.nii.gz"]
    assert "MR" in summary.refused[0].reason
    assert len(summary.skipped) == 16
    assert all("label values" in note.reason for note in summary.skipped)
    shapes = {case.source.rpartition("/")[2]: case.shape for case in site.catalog.cases()}
    assert shapes["example_ct_dicom"] == (512, 512, 20)
    assert shapes["ct_cropped.nii.gz"] == (120, 126, 164)


def test_a_real_ct_with_its_label_map(site: Site, shared_data: Path) -> None:
    real = shared_data / "TotalSegmentator" / "tests" / "reference_files"
    (site.folder / "s1").mkdir()
    shutil.copy(real / "example_ct.nii.gz", site.folder / "s1" / "ct.nii.gz")
    shutil.copy(
        real / "example_seg_fast_force_split.nii.gz", site.folder / "s1" / "combined_labels.nii.gz"
    )
    site.run(preset="totalsegmentator")
    assert site.labels() == {
        "spleen": 9668, "kidney_right": 7134, "kidney_left": 5090, "gall_bladder": 1319,
        "liver": 41692, "stomach": 4836, "pancreas": 695, "aorta": 1839, "postcava": 2266,
    }  # fmt: skip


def test_real_masks_with_a_wrong_origin_are_refused(site: Site, shared_data: Path) -> None:
    """example_ct_sm is the upper part of example_ct with the origin of the whole."""
    real = shared_data / "TotalSegmentator" / "tests" / "reference_files"
    (site.folder / "segmentations").mkdir()
    shutil.copy(real / "example_ct.nii.gz", site.folder / "ct.nii.gz")
    shutil.copy(real / "example_seg_fast" / "liver.nii.gz", site.folder / "segmentations")
    reason = only_reason(site.run())
    assert "122×101×112" in reason
    assert "122×101×30" in reason


def test_the_kidneys_of_kits_are_split(site: Site, shared_data: Path) -> None:
    label = shared_data / "kits19" / "data" / "case_00072" / "segmentation.nii.gz"
    image = nib.load(label).slicer[
        10:90, 240:440, 90:420
    ]  # what lies around the kidneys: sooner done
    case = site.folder / "case_00072"
    body = np.full(image.shape, 40, np.int16)
    body[:, :20] = -1000  # its CT is not at hand
    save(case / "imaging.nii.gz", body, image.affine)
    nib.save(image, case / "segmentation.nii.gz")
    site.run(preset="kits")
    labels = site.labels()
    assert set(labels) == {"kidney_left", "kidney_right"}
    assert sum(labels.values()) == 369368 + 1565
    assert min(labels.values()) > 100_000


@pytest.mark.parametrize(
    "file",
    [
        "nibabel/nibabel/tests/data/example4d.nii.gz",
        "niivue/tests/images/ct_perfusion.nii.gz",
        "niivue-demo-images/CT_pitch.nii.gz",
    ],
)
def test_real_files_that_are_no_ct_are_refused(site: Site, shared_data: Path, file: str) -> None:
    found = sorted(shared_data.glob(file)) or sorted(shared_data.rglob(Path(file).name))
    summary = site.run(found[0])
    assert (summary.taken, len(summary.refused)) == ((), 1)


def test_a_registered_dataset_keeps_its_title(site: Site) -> None:
    site.catalog.add_dataset(Dataset(name="site", title="Our site"))
    save(site.folder / "a.nii.gz", ct_voxels())
    site.run()
    assert site.catalog.dataset("site").title == "Our site"


def test_a_malformed_name_of_a_dataset_is_refused(site: Site) -> None:
    save(site.folder / "ct.nii.gz", ct_voxels())
    for name in ("", "a/b", "../x", "[red]", "x" * 64):
        with pytest.raises(InvalidInput, match="name of a dataset"):
            import_folder(site.folder, name, catalog=site.catalog, store=site.store)
