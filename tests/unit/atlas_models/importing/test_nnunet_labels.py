"""What labels of nnU-Nets become: organs, questions about lesions, and a list of what is left out;
and which files of a result count."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from atlas_core.errors import InvalidInput, NotFound
from atlas_core.organs import ABDOMEN_ATLAS
from atlas_models.importing import NnunetChoices
from atlas_models.importing.nnunet_labels import NnunetLabels, read_labels
from atlas_models.importing.nnunet_result import NnunetResult, configuration_of, read_result


def read(named: dict[str, Any], /, **choices: Any) -> NnunetLabels:
    described = {"labels": {"background": 0, **named}}
    return read_labels(described, NnunetChoices(name="m", **choices), ABDOMEN_ATLAS, "d")


def test_a_lesion_is_asked_about_with_the_options_that_answer() -> None:
    labels = {"liver": 1, "liver_tumour": 2, "Milztumor": 3, "colon cancer": 4}
    with pytest.raises(InvalidInput, match=r"'liver_tumour' part of liver\?.*--label.*--leave-out"):
        read(labels)
    joined = read(labels, labels={"liver": ("liver_tumour",)})
    assert joined.head.channels == ((1, 2),)
    assert joined.values == {"liver": 1}
    assert set(joined.left_out) == {"Milztumor", "colon cancer"}
    apart = read(labels, left_out=("liver_tumour",))
    assert apart.head.channels == ((1,),)
    assert apart.left_out["liver_tumour"] == "as told"


def test_a_lesion_without_an_organ_in_its_name_may_be_of_any() -> None:
    with pytest.raises(InvalidInput, match="'tumor' part of an organ, and of which"):
        read({"liver": 1, "spleen": 2, "tumor": 3})


def test_a_preset_answers() -> None:
    assert read({"liver": 1, "cancer": 2}, preset="msd-liver").head.channels == ((1, 2),)


def test_a_lesion_within_the_region_of_its_organ_is_part_of_it() -> None:
    regions = read({"liver": [1, 2], "liver tumour": 2, "spleen": 3})
    assert regions.head.channels == ((0,), (2,))
    assert regions.values == {"liver": 1, "spleen": 3}
    assert regions.left_out == {"liver tumour": "no organ of the scheme"}


def test_one_channel_of_both_kidneys_is_never_one_of_them() -> None:
    labels = {"liver": 1, "kidneys": 2}
    assert "kidney_left and kidney_right" in read(labels).left_out["kidneys"]
    with pytest.raises(InvalidInput, match="means kidney_left and kidney_right in one channel"):
        read(labels, labels={"kidney_left": ("kidneys",)})
    kits = {"kidney": [1, 2, 3], "masses": [2, 3], "tumor": 2, "ignore": 4}
    with pytest.raises(InvalidInput, match="kidney: one channel for kidney_left and kidney_right"):
        read(kits)


def test_a_label_is_one_thing() -> None:
    with pytest.raises(InvalidInput, match="given twice"):
        read({"Leber": 1}, labels={"liver": ("Leber",)}, left_out=("Leber",))
    with pytest.raises(InvalidInput, match="no label 'Milz'"):
        read({"Leber": 1}, labels={"spleen": ("Milz",)})


def write_result(folder: Path, checkpoints: dict[str, list[str]], mark: str = "") -> Path:
    folder.mkdir()
    (folder / "plans.json").write_text("{}")
    (folder / "dataset.json").write_text(mark + '{"labels": {"background": 0}}')
    for fold, names in checkpoints.items():
        (folder / fold).mkdir()
        for name in names:
            content = {"network_weights": {"w": torch.zeros(1)}, "trainer_name": "../x",
                       "init_args": {"configuration": "3d_fullres"}}  # fmt: skip
            torch.save(content, folder / fold / f"checkpoint_{name}.pth")
    return folder


def read_files(folder: Path, **choices: Any) -> NnunetResult:
    return read_result(folder, NnunetChoices(name="m", **choices))


def files_of(result: NnunetResult) -> list[str]:
    return [f"{fold.name}/{fold.checkpoint}" for fold in result.folds]


def test_the_best_checkpoint_counts_where_there_is_no_final(tmp_path: Path) -> None:
    folder = write_result(tmp_path / "r", {"fold_0": ["best", "latest"], "fold_1": ["best"]})
    result = read_files(folder)
    assert files_of(result) == ["fold_0/checkpoint_best.pth", "fold_1/checkpoint_best.pth"]
    assert result.folds[0].trainer == "nnUNetTrainer"  # a name that is none is not taken over
    assert configuration_of(result, NnunetChoices(name="m"), "r") == "3d_fullres"


def test_a_fold_that_is_still_trained_stands_aside_and_is_named(tmp_path: Path) -> None:
    folder = write_result(tmp_path / "r", {"fold_0": ["final", "best"], "fold_1": ["best"]})
    result = read_files(folder)
    assert (files_of(result), result.unfinished) == (["fold_0/checkpoint_final.pth"], ("fold_1",))
    assert files_of(read_files(folder, folds=("1",))) == ["fold_1/checkpoint_best.pth"]


def test_what_is_missing_is_said_with_what_is_there(tmp_path: Path) -> None:
    latest = write_result(tmp_path / "latest", {"fold_0": ["latest"]}, mark="\ufeff")
    with pytest.raises(NotFound, match=r"got fold_0/checkpoint_latest\.pth.*--checkpoint"):
        read_files(latest)
    assert files_of(read_files(latest, checkpoint="checkpoint_latest.pth"))
    with pytest.raises(NotFound, match="results inside: latest"):
        read_files(tmp_path)
    (tmp_path / "v1").mkdir()
    (tmp_path / "v1" / "plans.pkl").write_bytes(b"")
    with pytest.raises(NotFound, match="nnU-Net v1"):
        read_files(tmp_path / "v1")


def test_a_cascade_is_refused_with_the_remedy() -> None:
    from atlas_models.importing.nnunet_plans import read_configuration

    plans = json.loads(
        '{"configurations": {"3d_cascade_fullres": {"patch_size": [8, 8, 8],'
        ' "previous_stage": "3d_lowres"}}}'
    )
    with pytest.raises(InvalidInput, match="import the folder of 3d_fullres or 3d_lowres"):
        read_configuration(plans, "3d_cascade_fullres", "RAS")
