"""Organs: the vocabulary refuses what would make two things look alike."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from atlas_core.errors import ConfigurationError, Conflict, UnknownLabel
from atlas_core.organs import (
    ABDOMEN_ATLAS,
    Organ,
    OrganScheme,
    SchemeSetting,
    read_scheme,
    shipped_schemes,
)
from pydantic import TypeAdapter, ValidationError

VISIONS = {
    "normal": np.eye(3),
    "protanopia": [
        [0.152286, 1.052583, -0.204868],
        [0.114503, 0.786281, 0.099216],
        [-0.003882, -0.048116, 1.051998],
    ],
    "deuteranopia": [
        [0.367322, 0.860646, -0.227968],
        [0.280085, 0.672501, 0.047413],
        [-0.011820, 0.042940, 0.968881],
    ],
    "tritanopia": [
        [1.255528, -0.076749, -0.178779],
        [-0.078411, 0.930809, 0.147602],
        [0.004733, 0.691367, 0.303900],
    ],
}
"""What linear RGB becomes: Machado, Oliveira, Fernandes 2009, severity 1."""

LEAST_DIFFERENCE = 0.05
"""Distance in OKLab between two colours of a group; 0.02 is just noticed side by side."""


def test_the_default_ids_are_those_of_the_release() -> None:
    assert {organ.name: organ.label for organ in ABDOMEN_ATLAS} == {
        "aorta": 1, "gall_bladder": 2, "kidney_left": 3, "kidney_right": 4, "liver": 5,
        "pancreas": 6, "postcava": 7, "spleen": 8, "stomach": 9,
    }  # fmt: skip
    assert len({organ.colour for organ in ABDOMEN_ATLAS}) == len(ABDOMEN_ATLAS) == 9


def test_organs_are_found_by_name() -> None:
    assert ABDOMEN_ATLAS["liver"].label == 5
    assert "liver" in ABDOMEN_ATLAS
    assert "prostate" not in ABDOMEN_ATLAS
    assert ABDOMEN_ATLAS["kidney_left"].title == "kidney left"
    with pytest.raises(UnknownLabel, match=r"'prostate'.*expected one of aorta"):
        ABDOMEN_ATLAS["prostate"]


def test_a_selection_keeps_the_order_it_was_asked_in() -> None:
    assert ABDOMEN_ATLAS.select(["spleen", "aorta"]).labels == (8, 1)
    with pytest.raises(UnknownLabel):
        ABDOMEN_ATLAS.select(["spleen", "nose"])


@pytest.mark.parametrize(
    ("name", "label", "colour"),
    [
        ("Liver", 5, "#a05195"), ("", 5, "#a05195"), ("../liver", 5, "#a05195"),
        ("liver", 0, "#a05195"), ("liver", 256, "#a05195"), ("liver", 5, "red"),
    ],
)  # fmt: skip
def test_what_is_no_organ_is_refused(name: str, label: int, colour: str) -> None:
    with pytest.raises(ValidationError):
        Organ(name=name, label=label, colour=colour)


def test_names_and_ids_are_distinct() -> None:
    liver = ABDOMEN_ATLAS["liver"]
    for other in (
        liver.model_copy(update={"name": "hepar"}),
        liver.model_copy(update={"label": 9}),
    ):
        with pytest.raises(ValidationError, match="used twice"):
            OrganScheme(organs=(liver, other))
    with pytest.raises(ValidationError):
        OrganScheme(organs=())


# Schemes of one's own


OWN = """
name: site
organs:
  - {name: liver, label: 5, colour: "#a05195"}
  - {name: lung_left, label: 20, colour: "#112233", partner: lung_right, aliases: [Lunge L, lungs]}
  - {name: lung_right, label: 21, colour: "#445566", partner: lung_left, aliases: [lungs]}
"""


def written(text: str, folder: Path) -> Path:
    path = folder / "organs.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def test_a_scheme_of_ones_own_is_read_and_written_as_it_was(tmp_path: Path) -> None:
    scheme = read_scheme(written(OWN, tmp_path))
    assert (scheme.name, scheme.labels) == ("site", (5, 20, 21))
    assert [organ.name for organ in scheme.called("LUNGS")] == ["lung_left", "lung_right"]
    assert [organ.name for organ in scheme.called("lunge_l")] == ["lung_left"]
    for name in (written(OWN, tmp_path), *shipped_schemes()):
        known = read_scheme(name)
        assert read_scheme(written(known.as_yaml(), tmp_path)) == known
    setting = TypeAdapter(SchemeSetting)
    assert setting.validate_python(scheme.model_dump_json()) == scheme
    assert setting.validate_python("abdomen_atlas_1_0") == ABDOMEN_ATLAS
    assert setting.validate_python(str(written(OWN, tmp_path))) == scheme
    with pytest.raises(ValidationError, match="no organ scheme 'nowhere'"):
        setting.validate_python("nowhere")


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ("label: 5", "label: 0", r"organs\.liver\.label.*greater than or equal to 1.*got 0"),
        ("label: 5", "label: 256", r"organs\.liver\.label.*less than or equal to 255"),
        ("label: 5", "label: 20", "organ label used twice: 20"),
        ("name: liver", "name: Liver", r"organs\.Liver\.name"),
        ("label: 5", "label: 5, color: red", r"organs\.liver\.color"),
        ("#a05195", "violet", r"organs\.liver\.colour"),
        ("partner: lung_left", "partner: liver", "does not point back"),
        ("partner: lung_right", "partner: nose", "partner nose of lung_left is no organ here"),
        ("label: 5", "label: 5, partner: liver", "name must say left or right"),
        ("label: 5", "label: 5, aliases: [lungs]", "'lungs' means several organs"),
        ("label: 5", "label: 5, volume_ml: [3, 1]", "volume_ml of liver"),
        ("organs:", "organ:", r"organs \(expected Field required\)"),
        ("name: site", "name: [", "cannot be read"),
        (OWN, "- liver", "file"),
        (OWN, "", "file"),
    ],
)
def test_a_file_that_cannot_work_is_refused_with_its_place(
    old: str, new: str, told: str, tmp_path: Path
) -> None:
    assert old in OWN
    with pytest.raises(ConfigurationError, match=told) as refused:
        read_scheme(written(OWN.replace(old, new, 1), tmp_path))
    assert "organs.yaml" in str(refused.value)


def test_no_such_scheme(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"no organ scheme.*abdomen_atlas_1_1.*YAML"):
        read_scheme(tmp_path / "missing.yaml")


def test_the_digest_is_what_values_mean_and_nothing_else() -> None:
    liver, aorta = ABDOMEN_ATLAS["liver"], ABDOMEN_ATLAS["aorta"]
    scheme = OrganScheme(organs=(liver, aorta))
    prettier = liver.model_copy(update={"colour": "#123456", "aliases": ("hepar",)})
    assert OrganScheme(name="other", organs=(aorta, prettier)).digest == scheme.digest
    scheme.require_same(OrganScheme(organs=(aorta, prettier)), this="a", that="b", remedy="c")
    moved = OrganScheme(organs=(liver.model_copy(update={"label": 77}), aorta))
    assert moved.digest != scheme.digest
    with pytest.raises(ConfigurationError, match=r"custom \(2 organs.*custom \(2 organs"):
        scheme.require_same(moved, this="the atlas", that="the service", remedy="restart it")


def test_a_scheme_is_extended_by_new_ids_only() -> None:
    more = read_scheme("abdomen_atlas_1_1")
    more.require_extends(ABDOMEN_ATLAS)
    with pytest.raises(Conflict, match=r"adrenal_gland_left with id 10.*no such organ"):
        ABDOMEN_ATLAS.require_extends(more)
    with pytest.raises(Conflict, match=r"aorta with id 1.*got id 52"):
        read_scheme("totalsegmentator_v2").require_extends(ABDOMEN_ATLAS)


def test_what_is_left_of_a_pair_has_no_name_of_both() -> None:
    one = ABDOMEN_ATLAS.select(["kidney_left", "liver"])
    assert one["kidney_left"].partner is None
    assert one.called("kidneys") == ()
    assert [organ.name for organ in one.called("left kidney")] == ["kidney_left"]


# The schemes that ship


def test_the_shipped_ids_are_those_of_the_releases() -> None:
    first, second, third = (
        read_scheme(name)
        for name in ("abdomen_atlas_1_0", "abdomen_atlas_1_1", "totalsegmentator_v2")
    )
    assert [organ.model_dump() for organ in second][:9] == [organ.model_dump() for organ in first]
    assert second.labels == tuple(range(1, 26))
    assert second.names[9:] == (
        "adrenal_gland_left", "adrenal_gland_right", "bladder", "celiac_trunk", "colon", "duodenum",
        "esophagus", "femur_left", "femur_right", "hepatic_vessel", "intestine", "lung_left",
        "lung_right", "portal_vein_and_splenic_vein", "prostate", "rectum",
    )  # fmt: skip
    assert third.labels == tuple(range(1, 118))
    for name, label in {
        "spleen": 1, "kidney_right": 2, "kidney_left": 3, "liver": 5, "prostate": 22, "sacrum": 25,
        "vertebrae_l1": 31, "vertebrae_c1": 50, "aorta": 52, "inferior_vena_cava": 63,
        "femur_left": 75, "brain": 90, "rib_left_1": 92, "rib_right_12": 115, "sternum": 116,
        "costal_cartilages": 117,
    }.items():  # fmt: skip
        assert third[name].label == label


def test_shipped_organs_go_by_the_names_of_one_another() -> None:
    theirs = read_scheme("totalsegmentator_v2")
    for organ in read_scheme("abdomen_atlas_1_1"):
        if organ.name not in {
            "celiac_trunk",
            "hepatic_vessel",
            "rectum",
            "lung_left",
            "lung_right",
        }:
            assert len(theirs.called(organ.name)) == 1, organ.name
    assert [organ.name for organ in ABDOMEN_ATLAS.called("inferior_vena_cava")] == ["postcava"]


@pytest.mark.parametrize("name", shipped_schemes())
def test_everybody_can_tell_the_colours_of_a_group_apart(name: str) -> None:
    groups: dict[str, list[Organ]] = {}
    for organ in read_scheme(name):
        assert organ.group
        groups.setdefault(organ.group, []).append(organ)
    for group, organs in groups.items():
        srgb = np.array([list(bytes.fromhex(organ.colour[1:])) for organ in organs]) / 255
        linear = np.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4)
        for vision, matrix in VISIONS.items():
            lab = _oklab((linear @ np.asarray(matrix).T).clip(0, 1))
            apart = np.linalg.norm(lab[:, None] - lab[None], axis=-1)
            np.fill_diagonal(apart, np.inf)
            assert apart.min() >= LEAST_DIFFERENCE, (group, vision)


def _oklab(linear: np.ndarray) -> np.ndarray:
    """Linear sRGB ``[colour, 3]`` in Ottosson's space, where equal distances look equal."""
    cones = [
        [0.4122214708, 0.5363325363, 0.0514459929],
        [0.2119034982, 0.6806995451, 0.1073969566],
        [0.0883024619, 0.2817188376, 0.6299787005],
    ]
    opponents = [
        [0.2104542553, 0.7936177850, -0.0040720468],
        [1.9779984951, -2.4285922050, 0.4505937099],
        [0.0259040371, 0.7827717662, -0.8086757660],
    ]
    return np.cbrt(linear @ np.array(cones).T) @ np.array(opponents).T
