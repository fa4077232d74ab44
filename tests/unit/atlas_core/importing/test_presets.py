"""Presets: every dataset of the paper's Table 3, and what makes a preset sound."""

from __future__ import annotations

import pytest
from atlas_core.errors import NotFound
from atlas_core.importing import shipped_presets
from atlas_core.importing.presets import (
    KIDNEYS,
    SIDES,
    LabelMap,
    Preset,
    preset,
    scheme_map,
    structure_of,
)
from atlas_core.organs import ABDOMEN_ATLAS
from pydantic import ValidationError

TABLE_3 = (
    "pancreas-ct", "lits", "kits", "abdomenct-1k", "ct-org", "chaos",
    "msd-liver", "msd-lung", "msd-pancreas", "msd-hepatic-vessel", "msd-spleen", "msd-colon",
    "btcv", "amos22", "word", "flare23", "abdomenct-12organ",
)  # fmt: skip


def test_every_dataset_of_table_3_and_three_more_are_there() -> None:
    assert set(shipped_presets()) == {*TABLE_3, "totalsegmentator", "abdomenatlas", "phantoms"}


@pytest.mark.parametrize("name", sorted(shipped_presets()))
def test_a_preset_is_sound(name: str) -> None:
    known = shipped_presets()[name]
    assert known.title
    assert known.licence
    assert set(known.organs) <= set(ABDOMEN_ATLAS.names)
    assert not set(known.labels) & known.others
    for structures in (known.labels.values(), known.masks.values()):
        assert not (KIDNEYS in structures and set(SIDES) & set(structures))
        assert ("kidney_left" in structures) == ("kidney_right" in structures)
    assert known.within(ABDOMEN_ATLAS) == LabelMap(
        labels=known.labels, others=known.others, masks=known.masks, partial=known.partial
    )


@pytest.mark.parametrize(
    ("name", "organ", "values"),
    [
        ("kits", KIDNEYS, {1, 2, 3}),
        ("lits", "liver", {1, 2}),
        ("msd-pancreas", "pancreas", {1, 2}),
        ("abdomenct-1k", KIDNEYS, {2}),
        ("ct-org", KIDNEYS, {4}),
        ("totalsegmentator", "postcava", {63}),
        ("totalsegmentator", "aorta", {52}),
        ("abdomenatlas", "postcava", {7}),
        ("flare23", "kidney_left", {13}),
        ("word", "kidney_left", {3}),
        ("btcv", "pancreas", {11}),
        ("amos22", "pancreas", {10}),
    ],
)
def test_values_of_well_known_datasets(name: str, organ: str, values: set[int]) -> None:
    assert {value for value, named in preset(name).labels.items() if named == organ} == values


def test_totalsegmentator_knows_all_its_values_and_mask_names() -> None:
    known = preset("totalsegmentator")
    assert set(known.values) == set(range(1, 118))
    assert known.masks["gallbladder"] == "gall_bladder"
    assert known.masks["inferior_vena_cava"] == "postcava"


def test_msd_tasks_without_an_organ_of_ours_annotate_none() -> None:
    for name in ("msd-lung", "msd-hepatic-vessel", "msd-colon"):
        assert preset(name).organs == ()
        assert preset(name).values


def test_only_flare_is_annotated_in_parts() -> None:
    assert [name for name, known in shipped_presets().items() if known.partial] == ["flare23"]


def test_a_preset_makes_a_dataset() -> None:
    dataset = preset("kits").dataset("our-kits")
    assert dataset.name == "our-kits"
    assert dataset.preset == "kits"
    assert dataset.organs == SIDES
    assert dataset.licence == "CC-BY-NC-SA-4.0"


def test_names_are_forgiving_and_unknown_ones_listed() -> None:
    assert preset("AbdomenCT 1K") is preset("abdomenct_1k") is preset("abdomenct-1k")
    with pytest.raises(NotFound, match="totalsegmentator"):
        preset("nothere")


def test_a_site_with_fewer_organs_still_knows_the_other_values() -> None:
    scheme = ABDOMEN_ATLAS.select(["liver", "kidney_left"])
    known = preset("abdomenct-1k").within(scheme)
    assert known.labels == {1: "liver"}  # both kidneys share a value, and one of them is unknown
    assert known.others == {2, 3, 4}


@pytest.mark.parametrize(
    "broken",
    [
        {"labels": {1: "liver"}, "others": "1"},
        {"labels": {0: "liver"}},
        {"labels": {1: "Liver!"}},
        {"labels": {1: "kidneys", 2: "kidney_left"}},
        {"others": "1-"},
        {"lables": {}},
    ],
)
def test_an_unsound_preset_is_refused(broken: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        Preset.model_validate({"name": "x", "title": "x", "licence": "x", **broken})


def test_ranges_of_values() -> None:
    assert LabelMap.model_validate({"others": "4, 8-10"}).others == {4, 8, 9, 10}


def test_without_a_preset_our_own_ids_and_names_hold() -> None:
    ours = scheme_map(ABDOMEN_ATLAS)
    assert ours.labels[5] == "liver"
    assert ours.masks["gall_bladder"] == "gall_bladder"
    assert ours.partial


@pytest.mark.parametrize(
    ("name", "structure"),
    [
        ("Left Kidney", "kidney_left"),
        ("kidney_right", "kidney_right"),
        ("right kidney", "kidney_right"),
        ("kidneys", KIDNEYS),
        ("gallbladder", "gall_bladder"),
        ("IVC", "postcava"),
        ("inferior vena cava", "postcava"),
        ("liver tumor", None),
        ("duodenum", None),
    ],
)
def test_structures_by_the_names_people_use(name: str, structure: str | None) -> None:
    assert structure_of(name, ABDOMEN_ATLAS) == structure
