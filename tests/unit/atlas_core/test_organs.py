"""Organs: the vocabulary refuses what would make two things look alike."""

from __future__ import annotations

import pytest
from atlas_core.errors import UnknownLabel
from atlas_core.organs import ABDOMEN_ATLAS, Organ, OrganScheme
from pydantic import ValidationError


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
