"""Label assembly: original over revised over pseudo, deterministic where masks overlap."""

from __future__ import annotations

from datetime import UTC, datetime
from itertools import permutations
from pathlib import Path

import numpy as np
import pytest
from atlas_core.assembly import preferred
from atlas_core.errors import GridMismatch, InvalidInput, UnknownLabel
from atlas_core.imaging import read_label
from atlas_core.organs import ABDOMEN_ATLAS
from atlas_core.records import Label, LabelSource
from numpy.typing import NDArray
from reference_assembly import Candidate, assemble, combine, map_labels

ORIGINAL, REVISED, PSEUDO = LabelSource.ORIGINAL, LabelSource.REVISED, LabelSource.PSEUDO


def mask(*voxels: int) -> NDArray[np.uint8]:
    """A row of six voxels, 1 at `voxels`."""
    row = np.zeros((6, 1, 1), np.uint8)
    row[list(voxels)] = 1
    return row


def label(organ: str, source: LabelSource, day: int = 1, sha: str = "a") -> Label:
    return Label(
        case_id="case", organ=organ, source=source, path=f"{organ}-{source}-{day}-{sha}", value=1,
        sha256=sha * 64, voxels=1, volume_ml=1.0, created_at=datetime(2026, 1, day, tzinfo=UTC),
    )  # fmt: skip


def candidate(organ: str, source: LabelSource, *voxels: int, day: int = 1) -> Candidate:
    return Candidate(label(organ, source, day), mask(*voxels))


def ids(*organs: str | None) -> list[int]:
    return [0 if organ is None else ABDOMEN_ATLAS[organ].label for organ in organs]


def test_masks_become_label_ids() -> None:
    combined = combine({"liver": mask(0, 1), "aorta": mask(4)}, ABDOMEN_ATLAS)
    assert combined.labels.dtype == np.uint8
    assert combined.labels.ravel().tolist() == ids("liver", "liver", None, None, "aorta", None)
    assert combined.overlap_voxels == 0


def test_overlaps_are_settled_by_priority_and_counted() -> None:
    masks = {"liver": mask(0, 1, 2), "gall_bladder": mask(2, 3), "stomach": mask(2)}
    for order in permutations(masks.items()):
        combined = combine(dict(order), ABDOMEN_ATLAS)  # the scheme's order: gall_bladder first
        assert combined.labels.ravel().tolist()[2] == ids("gall_bladder")[0]
        assert combined.overlaps == {"gall_bladder": 0, "liver": 1, "stomach": 1}
        combined = combine(dict(order), ABDOMEN_ATLAS, priority=["stomach"])
        assert combined.labels.ravel().tolist()[2] == ids("stomach")[0]


def test_what_cannot_be_combined_is_refused() -> None:
    with pytest.raises(UnknownLabel, match="prostate"):
        combine({"prostate": mask(0)}, ABDOMEN_ATLAS)
    with pytest.raises(GridMismatch, match="aorta and liver"):
        combine({"aorta": mask(0), "liver": np.zeros((5, 1, 1))}, ABDOMEN_ATLAS)
    with pytest.raises(InvalidInput):
        combine({}, ABDOMEN_ATLAS)


def test_the_better_source_counts_whatever_the_order() -> None:
    sources = [label("liver", source) for source in (PSEUDO, ORIGINAL, REVISED)]
    for order in permutations(sources):
        assert preferred(order).source is ORIGINAL
    for pair in permutations(sources[::2]):
        assert preferred(pair).source is REVISED


def test_of_one_source_the_newer_counts() -> None:
    old, new, twin = (label("liver", REVISED, d, s) for d, s in ((1, "f"), (2, "a"), (2, "b")))
    for order in permutations([old, new, twin]):
        assert preferred(order) is twin


def test_every_organ_takes_its_own_best_source() -> None:
    assembled = assemble(
        {
            "liver": [candidate("liver", PSEUDO, 0, 1, 2), candidate("liver", ORIGINAL, 0)],
            "spleen": [candidate("spleen", PSEUDO, 3), candidate("spleen", REVISED, 4)],
            "aorta": [candidate("aorta", PSEUDO, 5)],
            "pancreas": [],
        },
        ABDOMEN_ATLAS,
    )
    assert assembled.labels.ravel().tolist() == ids("liver", None, None, None, "spleen", "aorta")
    assert {organ: chosen.source for organ, chosen in assembled.provenance.items()} == {
        "aorta": PSEUDO, "liver": ORIGINAL, "spleen": REVISED,
    }  # fmt: skip
    assert list(assembled.provenance) == ["aorta", "liver", "spleen"]


def test_an_empty_original_clears_what_a_model_saw() -> None:
    found = [candidate("gall_bladder", PSEUDO, 0, 1), candidate("gall_bladder", ORIGINAL)]
    assembled = assemble({"gall_bladder": found}, ABDOMEN_ATLAS)
    assert not assembled.labels.any()
    assert assembled.provenance["gall_bladder"].source is ORIGINAL


def test_a_pseudo_label_takes_no_voxel_from_an_original_one() -> None:
    """The scheme's order alone would give the voxel to the aorta."""
    candidates = {
        "aorta": [candidate("aorta", PSEUDO, 2, 3)],
        "stomach": [candidate("stomach", ORIGINAL, 1, 2)],
    }
    assembled = assemble(candidates, ABDOMEN_ATLAS)
    expected = ids(None, "stomach", "stomach", "aorta", None, None)
    assert assembled.labels.ravel().tolist() == expected
    assert assembled.overlaps == {"stomach": 0, "aorta": 1}


def test_a_label_filed_under_another_organ_is_refused() -> None:
    with pytest.raises(InvalidInput, match="another organ"):
        assemble({"liver": [candidate("spleen", PSEUDO, 0)]}, ABDOMEN_ATLAS)


def test_nothing_is_changed_in_place() -> None:
    masks = {"liver": mask(0, 1), "aorta": mask(1)}
    before = {name: values.copy() for name, values in masks.items()}
    combine(masks, ABDOMEN_ATLAS)
    assert all(np.array_equal(masks[name], before[name]) for name in masks)


def test_nine_real_masks_rebuild_their_label_map(shared_data: Path) -> None:
    folder = shared_data / "TotalSegmentator/tests/reference_files"
    their_names = {"gall_bladder": "gallbladder", "postcava": "inferior_vena_cava"}
    values = {
        "spleen": 1, "kidney_right": 2, "kidney_left": 3, "gall_bladder": 4, "liver": 5,
        "stomach": 6, "pancreas": 7, "aorta": 52, "postcava": 63,
    }  # fmt: skip
    masks = {
        organ: read_label(
            folder / "example_seg_fast" / f"{their_names.get(organ, organ)}.nii.gz"
        ).voxels
        for organ in values
    }
    combined = combine(masks, ABDOMEN_ATLAS)
    assert combined.overlap_voxels == 0
    reference = read_label(folder / "example_seg_fast.nii.gz")
    organs: dict[int, str | None] = dict.fromkeys(reference.values)
    organs.update({value: organ for organ, value in values.items()})
    expected = combine(map_labels(reference.voxels, organs), ABDOMEN_ATLAS)
    assert np.array_equal(combined.labels, expected.labels)
    assert np.count_nonzero(combined.labels) > 10_000
