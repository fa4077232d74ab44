"""Presets: every dataset of the paper's Table 3, and what makes a preset sound."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from atlas_core.errors import InvalidInput, NotFound
from atlas_core.importing import shipped_presets
from atlas_core.importing.presets import (
    LabelMap,
    Preset,
    preset,
    scheme_map,
    structure_of,
)
from atlas_core.organs import ABDOMEN_ATLAS, read_scheme
from pydantic import ValidationError

KIDNEYS = ("kidney_left", "kidney_right")

SCHEMES = ("abdomen_atlas_1_0", "abdomen_atlas_1_1", "totalsegmentator_v2")

TABLE_3 = (
    "pancreas-ct", "lits", "kits", "abdomenct-1k", "ct-org", "chaos",
    "msd-liver", "msd-lung", "msd-pancreas", "msd-hepatic-vessel", "msd-spleen", "msd-colon",
    "btcv", "amos22", "word", "flare23", "abdomenct-12organ",
)  # fmt: skip


def test_every_dataset_of_table_3_and_three_more_are_there() -> None:
    assert set(shipped_presets()) == {*TABLE_3, "totalsegmentator", "abdomenatlas", "phantoms"}


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("name", sorted(shipped_presets()))
def test_a_preset_is_sound(name: str, scheme: str) -> None:
    known, organs = shipped_presets()[name], read_scheme(scheme)
    assert known.title
    assert known.licence
    meaning = known.within(organs)
    assert set(meaning.organs) <= set(organs.names)
    assert set(meaning.values) == set(known.labels) | known.others
    for left, right in (KIDNEYS, ("lung_left", "lung_right")):
        assert (left in meaning.organs) == (right in meaning.organs)


def test_every_name_in_a_preset_is_one_that_some_shipped_scheme_has() -> None:
    schemes = [read_scheme(name) for name in SCHEMES]
    for known in shipped_presets().values():
        for meaning in (*known.labels.values(), *known.masks.values()):
            for name in meaning:
                assert any(scheme.called(name) for scheme in schemes), (known.name, name)


@pytest.mark.parametrize(
    ("name", "structure", "values"),
    [
        ("kits", KIDNEYS, {1, 2, 3}),
        ("lits", ("liver",), {1, 2}),
        ("msd-pancreas", ("pancreas",), {1, 2}),
        ("abdomenct-1k", KIDNEYS, {2}),
        ("ct-org", KIDNEYS, {4}),
        ("totalsegmentator", ("postcava",), {63}),
        ("totalsegmentator", ("aorta",), {52}),
        ("abdomenatlas", ("postcava",), {7}),
        ("flare23", ("kidney_left",), {13}),
        ("word", ("kidney_left",), {3}),
        ("btcv", ("pancreas",), {11}),
        ("amos22", ("pancreas",), {10}),
    ],
)
def test_values_of_well_known_datasets(
    name: str, structure: tuple[str, ...], values: set[int]
) -> None:
    labels = preset(name).within(ABDOMEN_ATLAS).labels
    assert {value for value, named in labels.items() if named == structure} == values


def test_totalsegmentator_knows_all_its_values_and_mask_names() -> None:
    known, own = preset("totalsegmentator"), read_scheme("totalsegmentator_v2")
    assert set(known.within(ABDOMEN_ATLAS).values) == set(range(1, 118))
    masks = known.within(ABDOMEN_ATLAS).masks
    assert masks["gallbladder"] == ("gall_bladder",)
    assert masks["inferior_vena_cava"] == ("postcava",)
    assert masks["kidney_cyst_left"] == ("kidney_left",)  # a lesion of it
    assert known.within(own).labels == {organ.label: (organ.name,) for organ in own}
    assert {(file.lower(),) for file in known.masks} == set(known.within(own).masks.values())
    lobes = known.within(read_scheme("abdomen_atlas_1_1")).labels
    assert [lobes[value] for value in (10, 11, 12, 13, 14)] == [
        *[("lung_left",)] * 2,
        *[("lung_right",)] * 3,
    ]


def test_msd_tasks_without_an_organ_of_ours_annotate_none() -> None:
    for name in ("msd-lung", "msd-hepatic-vessel", "msd-colon"):
        meaning = preset(name).within(ABDOMEN_ATLAS)
        assert meaning.organs == ()
        assert meaning.values


def test_only_flare_is_annotated_in_parts() -> None:
    assert [name for name, known in shipped_presets().items() if known.partial] == ["flare23"]


def test_a_preset_makes_a_dataset() -> None:
    dataset = preset("kits").dataset("our-kits", ABDOMEN_ATLAS)
    assert dataset.name == "our-kits"
    assert dataset.preset == "kits"
    assert dataset.organs == KIDNEYS
    assert dataset.licence == "CC-BY-NC-SA-4.0"


def test_names_are_forgiving_and_unknown_ones_listed() -> None:
    assert preset("AbdomenCT 1K") is preset("abdomenct_1k") is preset("abdomenct-1k")
    with pytest.raises(NotFound, match="totalsegmentator"):
        preset("nothere")


def test_a_site_with_fewer_organs_still_knows_the_other_values() -> None:
    scheme = ABDOMEN_ATLAS.select(["liver", "kidney_left"])
    known = preset("abdomenct-1k").within(scheme)
    # both kidneys share a value, and one of them is unknown
    assert known.labels == {1: ("liver",)}
    assert known.others == {2, 3, 4}


def test_a_site_with_more_organs_has_them_from_the_same_files() -> None:
    more = read_scheme("abdomen_atlas_1_1")
    assert preset("amos22").within(more).labels[13] == ("duodenum",)
    assert preset("word").within(more).labels[12] == ("adrenal_gland_left", "adrenal_gland_right")
    assert preset("abdomenatlas").within(more).others == frozenset()


@pytest.mark.parametrize(
    "broken",
    [
        {"labels": {1: "liver"}, "others": "1"},
        {"labels": {0: "liver"}},
        {"labels": {1: []}},
        {"others": "1-"},
        {"lables": {}},
    ],
)
def test_an_unsound_preset_is_refused(broken: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        Preset.model_validate({"name": "x", "title": "x", "licence": "x", **broken})


def own(content: object, folder: Path) -> str:
    path = folder / "our own.yaml"
    path.write_text(content if isinstance(content, str) else yaml.safe_dump(content))
    return str(path)


def test_a_preset_of_ones_own_is_a_file(tmp_path: Path) -> None:
    content = {
        "title": "Ours",
        "licence": "CC0-1.0",
        "labels": {3: "liver", 4: "kidneys", 7: ["spleen_tumour", "spleen"]},
        "others": "1, 2",
    }
    ours = preset(own(content, tmp_path))
    assert ours.name == "our-own"
    assert ours.within(ABDOMEN_ATLAS).labels == {3: ("liver",), 4: KIDNEYS, 7: ("spleen",)}


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ({"title": "x", "licence": "x", "lables": {}}, "lables"),
        ({"title": "x", "labels": {1: "liver"}}, "licence (expected Field required)"),
        ({"title": "x", "licence": "x", "labels": {"one": "liver"}}, "labels.one"),
        ("labels: [1", "cannot be read"),
        ("- 1", "file"),
    ],
)
def test_a_file_that_is_no_preset_is_refused_by_name_and_place(
    content: object, told: str, tmp_path: Path
) -> None:
    with pytest.raises(InvalidInput) as refused:
        preset(own(content, tmp_path))
    assert told in str(refused.value)
    assert "our own.yaml" in str(refused.value)


def test_one_side_and_both_sides_at_once_do_not_go_together() -> None:
    both = {"name": "x", "title": "x", "licence": "x", "labels": {1: "kidneys", 2: "kidney_left"}}
    with pytest.raises(InvalidInput, match="kidney_left: by itself, and in a value of both"):
        Preset.model_validate(both).within(ABDOMEN_ATLAS)
    LabelMap(labels={1: ("kidney_left",), 2: ("kidney_right",)})


def test_ranges_of_values() -> None:
    ranges = {"name": "x", "title": "x", "licence": "x", "others": "4, 8-10"}
    assert Preset.model_validate(ranges).others == {4, 8, 9, 10}


def test_without_a_preset_our_own_ids_names_and_aliases_hold() -> None:
    files = ("gallbladder", "gall_bladder", "IVC", "kidneys", "kidney_left", "nose")
    ours = scheme_map(ABDOMEN_ATLAS, files)
    assert ours.labels[5] == ("liver",)
    assert ours.partial
    # Its own name first: another file of the same organ is a lesion in it. Both kidneys in one say
    # nothing new where one has a file of its own.
    assert list(ours.masks.items()) == [
        ("gall_bladder", ("gall_bladder",)),
        ("kidney_left", ("kidney_left",)),
        ("IVC", ("postcava",)),
        ("gallbladder", ("gall_bladder",)),
    ]


@pytest.mark.parametrize(
    ("name", "structure"),
    [
        ("Left Kidney", ("kidney_left",)),
        ("kidney_right", ("kidney_right",)),
        ("right kidney", ("kidney_right",)),
        ("kidneys", KIDNEYS),
        ("gallbladder", ("gall_bladder",)),
        ("IVC", ("postcava",)),
        ("inferior vena cava", ("postcava",)),
        ("liver tumor", ()),
        ("duodenum", ()),
    ],
)
def test_structures_by_the_names_people_use(name: str, structure: tuple[str, ...]) -> None:
    assert structure_of(name, ABDOMEN_ATLAS) == structure
