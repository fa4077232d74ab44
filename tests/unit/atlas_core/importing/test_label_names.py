"""What label values and mask files mean by their names, and what is left open."""

from __future__ import annotations

import json

import pytest
from atlas_core.errors import InvalidInput
from atlas_core.importing.label_names import NamedMap, named_map, named_masks, nnunet_map
from atlas_core.organs import ABDOMEN_ATLAS

KIDNEYS = ("kidney_left", "kidney_right")
LIVER, SPLEEN = ("liver",), ("spleen",)


def of(labels: object) -> NamedMap:
    return nnunet_map(json.dumps({"labels": labels}).encode(), ABDOMEN_ATLAS)


def test_names_and_values_either_way() -> None:
    assert of({"0": "background", "1": "spleen"}).meaning.labels == {1: SPLEEN}
    found = of({"background": 0, "Left Kidney": 4, "colon": 2}).meaning
    assert (found.labels, found.others) == ({4: ("kidney_left",)}, {2})


def test_a_lesion_is_a_part_of_its_organ() -> None:
    """Of the one in its name, or of the only one that there is; which is said."""
    only = of({"background": 0, "liver": 1, "cancer": 2})
    assert only.meaning.labels == {1: LIVER, 2: LIVER}
    assert only.notes == ("cancer (value 2) is taken as a part of liver",)
    two = of({"liver": 1, "spleen": 2, "Liver_Tumour": 3, "splenic cyst": 4, "lung nodule": 5})
    assert two.meaning.labels == {1: LIVER, 2: SPLEEN, 3: LIVER, 4: SPLEEN}
    assert two.meaning.others == {5}


def test_a_lesion_of_any_organ_makes_label_maps_that_hold_it_unclear() -> None:
    found = of({"liver": 1, "spleen": 2, "tumor": 3}).meaning
    assert found.labels == {1: LIVER, 2: SPLEEN}
    assert set(found.unclear) == {3}


def test_what_nobody_looked_at_is_unclear() -> None:
    assert "not annotated" in of({"liver": 1, "ignore": 2}).meaning.unclear[2]


def test_regions() -> None:
    kits = of({"background": 0, "kidney": [1, 2, 3], "masses": [2, 3], "tumor": 2}).meaning
    assert kits.labels == dict.fromkeys((1, 2, 3), KIDNEYS)
    assert of({"solid_organs": [1, 2], "spleen": [2]}).meaning.labels == {2: SPLEEN}
    sides = of({"kidney": [1, 2], "left kidney": 1, "right kidney": 2}).meaning.labels
    assert sides == {1: ("kidney_left",), 2: ("kidney_right",)}
    both = of({"liver": [1, 2], "spleen": 2}).meaning
    assert (both.labels, set(both.unclear)) == ({1: LIVER}, {2})


def test_a_name_may_stand_at_several_values() -> None:
    pairs = [("liver", (1,)), ("spleen", (2,)), ("liver", (3,))]
    found = named_map(pairs, ABDOMEN_ATLAS).meaning.labels
    assert found == {1: LIVER, 2: SPLEEN, 3: LIVER}


def test_masks_by_the_names_people_write() -> None:
    files = {"Liver", "Left Kidney", "right_kidney", "liver_tumor", "colon", "spleen", "Spleen"}
    found = named_masks(files, None, ABDOMEN_ATLAS)
    assert found.masks == {
        "Left Kidney": ("kidney_left",),
        "right_kidney": ("kidney_right",),
        "Liver": LIVER,
        "liver_tumor": LIVER,
    }
    assert set(found.left_out) == {"spleen", "Spleen"}, "one of them would be chosen by chance"
    assert "kidneys" in named_masks({"kidneys", "kidney_left"}, None, ABDOMEN_ATLAS).left_out
    assert "tumor liver" in named_masks({"tumor liver"}, None, ABDOMEN_ATLAS).left_out


@pytest.mark.parametrize(
    "text", ["{}", "[]", '{"labels": 3}', '{"labels": {"liver": "one"}}', '{"labels": [1]}']
)
def test_a_dataset_json_of_another_kind_is_refused(text: str) -> None:
    with pytest.raises(InvalidInput, match=r"dataset\.json is not nnU-Net's"):
        nnunet_map(text.encode(), ABDOMEN_ATLAS)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le"])
def test_any_unicode_is_read(encoding: str) -> None:
    text = '{"labels": {"liver": 1}}'.replace(" ", "\r\n")
    assert nnunet_map(text.encode(encoding), ABDOMEN_ATLAS).meaning.labels == {1: LIVER}


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "line 1, column 1"),
        (b'{"labels": {\n  "liver": 1,\n}}', "line [23], column"),
        (b'{"labels": {"liver": 1, "liver": 2}}', "twice .*liver"),
        ('{"labels": {"M\xfcller": 1}}'.encode("latin-1"), "UTF-8"),
        (b"[" * 100_000, "no JSON"),
    ],
)
def test_a_fault_in_json_is_named_with_its_place(content: bytes, words: str) -> None:
    with pytest.raises(InvalidInput, match=words):
        nnunet_map(content, ABDOMEN_ATLAS)
