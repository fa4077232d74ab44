"""Every class of an imported model that is not served says why."""

from __future__ import annotations

from atlas_core.organs import ABDOMEN_ATLAS
from atlas_models.importing import NnunetChoices
from atlas_models.importing.imported_model import NO_ORGAN, NOT_CHOSEN, ImportedModel
from atlas_models.importing.model_description import ModelDescription
from atlas_models.importing.nnunet_labels import read_labels

LIVER_ALONE = ABDOMEN_ATLAS.select(("liver",))

DESCRIPTION = ModelDescription(
    classes=("liver", "Milz", "Right Kidney", "duodenum", None),
    spacing_mm=(2.0, 2.0, 2.0),
    patch=(16, 16, 16),
)


def imported(left_out: dict[str, str]) -> ImportedModel:
    spec = DESCRIPTION.spec("theirs", 0, "unet", LIVER_ALONE.names, {})
    return ImportedModel(spec, "monai", left_out)


def test_a_class_that_was_not_chosen_is_told_from_one_that_is_no_organ() -> None:
    said = imported(DESCRIPTION.left_out(LIVER_ALONE)).chosen_from(ABDOMEN_ATLAS)
    assert said.left_out == {"Milz": NO_ORGAN, "Right Kidney": NOT_CHOSEN, "duodenum": NO_ORGAN}


def test_other_reasons_stay() -> None:
    labels = {"background": 0, "liver": 1, "spleen": 2, "aorta": 3, "colon": 4}
    choices = NnunetChoices(name="m", left_out=("spleen",))
    read = read_labels({"labels": labels}, choices, LIVER_ALONE, "d")
    said = imported(dict(read.left_out)).chosen_from(ABDOMEN_ATLAS)
    assert said.left_out == {"spleen": "as told", "aorta": NOT_CHOSEN, "colon": NO_ORGAN}
