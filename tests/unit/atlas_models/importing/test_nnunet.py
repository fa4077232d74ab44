"""Imported nnU-Nets say what nnU-Net's own predictor says, and nothing in their files is run."""

from __future__ import annotations

import json
import os
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from atlas_core.errors import AtlasError, CorruptFile, InvalidInput, NotFound
from atlas_core.organs import ABDOMEN_ATLAS
from atlas_models.exporting.parity import measure, run_graph
from atlas_models.importing.nnunet import import_nnunet, load_nnunet
from atlas_models.importing.nnunet_choices import NnunetChoices
from atlas_models.importing.nnunet_labels import read_labels
from atlas_models.importing.nnunet_plans import build, read_configuration
from atlas_models.serving import GRAPH_FILE, read_spec

pytestmark = pytest.mark.slow

PATCH = (24, 16, 32)  # z, y, x before the plans' transposition; three lengths
SPACING = (2.0, 1.5, 1.0)
CT = {"mean": 60.0, "std": 110.0, "percentile_00_5": -600.0, "percentile_99_5": 900.0}
LABELS = {"background": 0, "liver": 1, "Right Kidney": 2, "duodenum": 3, "liver_tumour": 4}
TRANSPOSED = (1, 0, 2)
MORE = {"liver": ("liver_tumour",)}

nnunetv2 = pytest.importorskip("nnunetv2", reason="nnU-Net's own predictor is not installed")


def plans(transpose: tuple[int, int, int] = TRANSPOSED) -> dict[str, Any]:
    """What nnU-Net's planner writes, for a network of a hand's size."""
    levels = 3
    return {
        "dataset_name": "Dataset999_Phantoms",
        "plans_name": "nnUNetPlans",
        "original_median_spacing_after_transp": [SPACING[axis] for axis in transpose],
        "original_median_shape_after_transp": [PATCH[axis] for axis in transpose],
        "image_reader_writer": "SimpleITKIO",
        "transpose_forward": list(transpose),
        "transpose_backward": [transpose.index(axis) for axis in range(3)],
        "label_manager": "LabelManager",
        "foreground_intensity_properties_per_channel": {"0": CT},
        "configurations": {
            "3d_fullres": {
                "data_identifier": "nnUNetPlans_3d_fullres",
                "preprocessor_name": "DefaultPreprocessor",
                "batch_size": 2,
                "patch_size": [PATCH[axis] for axis in transpose],
                "spacing": [SPACING[axis] for axis in transpose],
                "normalization_schemes": ["CTNormalization"],
                "use_mask_for_norm": [False],
                "resampling_fn_data": "resample_data_or_seg_to_shape",
                "resampling_fn_seg": "resample_data_or_seg_to_shape",
                "resampling_fn_data_kwargs": {"is_seg": False, "order": 3, "order_z": 0},
                "resampling_fn_seg_kwargs": {"is_seg": True, "order": 1, "order_z": 0},
                "resampling_fn_probabilities": "resample_data_or_seg_to_shape",
                "resampling_fn_probabilities_kwargs": {"is_seg": False, "order": 1, "order_z": 0},
                "architecture": {
                    "network_class_name": (
                        "dynamic_network_architectures.architectures.unet.PlainConvUNet"
                    ),
                    "arch_kwargs": {
                        "n_stages": levels,
                        "features_per_stage": [8, 12, 16],
                        "conv_op": "torch.nn.modules.conv.Conv3d",
                        "kernel_sizes": [[3, 3, 3]] * levels,
                        "strides": [[1, 1, 1], [2, 2, 2], [1, 2, 2]],
                        "n_conv_per_stage": [1] * levels,
                        "n_conv_per_stage_decoder": [1] * (levels - 1),
                        "conv_bias": True,
                        "norm_op": "torch.nn.modules.instancenorm.InstanceNorm3d",
                        "norm_op_kwargs": {"eps": 1e-5, "affine": True},
                        "dropout_op": None,
                        "dropout_op_kwargs": None,
                        "nonlin": "torch.nn.LeakyReLU",
                        "nonlin_kwargs": {"inplace": True},
                    },
                    "_kw_requires_import": ["conv_op", "norm_op", "dropout_op", "nonlin"],
                },
            },
            "3d_child": {"inherits_from": "3d_fullres", "batch_size": 1},
        },
    }


def dataset(labels: dict[str, Any] | None = None) -> dict[str, Any]:
    return {
        "channel_names": {"0": "CT"},
        "labels": labels or LABELS,
        "numTraining": 2,
        "file_ending": ".nii.gz",
    }


def chosen(**choices: Any) -> NnunetChoices:
    """Choices with an answer to what the results here leave open."""
    return NnunetChoices(**{"name": "m", "orientation": "RAS", "labels": MORE} | choices)


def network_of(plan: dict[str, Any], outputs: int, seed: int) -> torch.nn.Module:
    """By nnU-Net itself, with seeded weights."""
    from nnunetv2.utilities.get_network_from_plans import get_network_from_plans

    architecture = plan["configurations"]["3d_fullres"]["architecture"]
    torch.manual_seed(seed)
    # As nnU-Net trains it: with the extra outputs of deep supervision.
    return get_network_from_plans(
        architecture["network_class_name"],
        architecture["arch_kwargs"],
        architecture["_kw_requires_import"],
        1,
        outputs,
        deep_supervision=True,
    )


def write_result(
    folder: Path, plan: dict[str, Any], described: dict[str, Any], folds: tuple[int, ...] = (0,)
) -> Path:
    """A result folder as `nnUNetv2_train` leaves it."""
    folder.mkdir(parents=True)
    (folder / "plans.json").write_text(json.dumps(plan))
    (folder / "dataset.json").write_text(json.dumps(described))
    for fold in folds:
        (folder / f"fold_{fold}").mkdir()
        network = network_of(plan, len(described["labels"]), seed=fold)
        torch.save(
            {
                "network_weights": network.state_dict(),
                "optimizer_state": torch.optim.SGD(network.parameters(), 0.01).state_dict(),
                "grad_scaler_state": None,
                "logging": {"mean_fg_dice": [np.float64(0.5)], "lrs": [np.float32(0.01)]},
                "_best_ema": np.float64(0.5),
                "current_epoch": 1000,
                "init_args": {"configuration": "3d_fullres", "fold": fold, "plans": plan,
                              "device": torch.device("cpu")},
                "trainer_name": "nnUNetTrainer",
                "inference_allowed_mirroring_axes": (0, 1, 2),
            },
            folder / f"fold_{fold}" / "checkpoint_final.pth",
        )  # fmt: skip
    return folder


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("nnunet") / "nnUNetTrainer__nnUNetPlans__3d_fullres"
    return write_result(folder, plans(), dataset(), folds=(0, 1))


@pytest.fixture(scope="module")
def window() -> np.ndarray:
    """HU ``[z, y, x]``: a body of smooth blobs, with metal and air, nowhere zero."""
    from scipy.ndimage import gaussian_filter

    rng = np.random.default_rng(7)
    tissue = gaussian_filter(rng.normal(size=PATCH), 2.0)
    hu = 60.0 + 150.0 * tissue / tissue.std()
    hu[:2], hu[:, :2], hu[5, 5, 5:9] = -1000.0, -1000.0, 2500.0
    return hu.astype(np.float32)


def predictor_of(result: Path, checkpoints: list[dict[str, Any]]) -> Any:
    """nnU-Net's own predictor, without mirrored predictions, for a volume of one window.

    Without its Gaussian weights too: kept in float16, they have one or two digits left in the
    corners of a window, where no other window is there to help.
    """
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    manager = PlansManager(json.loads((result / "plans.json").read_text()))
    configuration = manager.get_configuration("3d_fullres")
    described = json.loads((result / "dataset.json").read_text())
    network = network_of(manager.plans, len(described["labels"]), seed=0)
    network.decoder.deep_supervision = False  # type: ignore[union-attr]
    predictor = nnUNetPredictor(
        use_gaussian=False,
        use_mirroring=False,
        device=torch.device("cpu"),
        allow_tqdm=False,
        verbose=False,
    )
    predictor.manual_initialization(
        network, manager, configuration, [c["network_weights"] for c in checkpoints],
        described, "nnUNetTrainer", None,
    )  # fmt: skip
    return predictor


def theirs(result: Path, window: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Preprocessed input (their axes) and probabilities ``[class, z, y, x]`` by nnU-Net."""
    checkpoints = [
        torch.load(fold / "checkpoint_final.pth", weights_only=False)
        for fold in sorted(result.glob("fold_*"))
    ]
    predictor = predictor_of(result, checkpoints)
    preprocessor = predictor.configuration_manager.preprocessor_class(verbose=False)
    data, _, _ = preprocessor.run_case_npy(
        window[None], None, {"spacing": SPACING}, predictor.plans_manager,
        predictor.configuration_manager, predictor.dataset_json,
    )  # fmt: skip
    _, probabilities = predictor.predict_single_npy_array(
        window[None], {"spacing": list(SPACING)}, None, None, True
    )
    return data, probabilities


def test_it_says_what_nnunets_own_predictor_says(
    result: Path, window: np.ndarray, tmp_path: Path
) -> None:
    choices = chosen(name="imported", version=3)
    spec = import_nnunet(result, tmp_path / "imported", choices, ABDOMEN_ATLAS).spec
    served, _ = load_nnunet(result, choices, ABDOMEN_ATLAS)
    preprocessed, probabilities = theirs(result, window)

    ct = torch.from_numpy(window)[None, None]
    ours = served.input_transform.intensities(served.input_transform.to_network_axes(ct)).numpy()[0]
    assert ours.shape == preprocessed.shape
    assert np.abs(ours - preprocessed).max() <= 1e-4

    soft, rounded = run_graph(tmp_path / "imported" / GRAPH_FILE, window[None, None])
    expected = np.stack([probabilities[2], probabilities[1] + probabilities[4]])
    assert spec.organs == ("kidney_right", "liver")
    assert np.ptp(expected) > 0.2  # it says something, so that agreement means something
    assert np.abs(soft[0] - expected).max() <= 1e-3
    assert np.abs(rounded[0].astype(int) - np.rint(expected * 255).astype(int)).max() <= 1
    assert measure(served, tmp_path / "imported", [window, window[::-1].copy()]).byte <= 1


def test_the_spec_is_on_our_axes(result: Path, tmp_path: Path) -> None:
    choices = chosen(name="imported", version=3)
    import_nnunet(result, tmp_path / "imported", choices, ABDOMEN_ATLAS)
    spec = read_spec(tmp_path / "imported")
    assert spec.patch == PATCH[::-1]
    assert spec.spacing_mm == SPACING[::-1]
    assert spec.hu_window == (-600.0, 900.0)
    assert (spec.activation, spec.version) == ("softmax", 3)
    graph = onnx.load_model(tmp_path / "imported" / GRAPH_FILE)
    z, y, x = PATCH
    assert [d.dim_value for d in graph.graph.input[0].type.tensor_type.shape.dim][1:] == [
        1, z, y, x,
    ]  # fmt: skip


@pytest.mark.parametrize("orientation", ["LPS", "LAS", "RAI"])
def test_turning_the_volume_turns_the_prediction(
    result: Path, window: np.ndarray, orientation: str
) -> None:
    """A network whose volumes ran the other way sees ours turned, and its answer is turned back."""
    base, _ = load_nnunet(result, chosen(), ABDOMEN_ATLAS)
    other, _ = load_nnunet(result, chosen(orientation=orientation), ABDOMEN_ATLAS)
    axes = [4 - axis for axis, letter in enumerate(orientation) if letter in "LPI"]
    ct = torch.from_numpy(window)[None, None]
    with torch.no_grad():
        expected = base.probabilities(ct.flip(axes)).flip(axes)
        assert torch.equal(other.probabilities(ct), expected)
        assert not torch.allclose(other.probabilities(ct), base.probabilities(ct), atol=1e-3)


def test_one_fold_is_not_the_mean_of_two(result: Path, window: np.ndarray) -> None:
    ct = torch.from_numpy(window)[None, None]
    soft = {}
    for folds in (("0",), ("1",), "all"):
        served, _ = load_nnunet(result, chosen(folds=folds), ABDOMEN_ATLAS)
        with torch.no_grad():
            soft[str(folds)] = served.network(
                served.input_transform.intensities(served.input_transform.to_network_axes(ct))
            )
    mean = (soft["('0',)"] + soft["('1',)"]) / 2
    assert torch.allclose(soft["all"], mean, atol=1e-5)


def test_residual_encoders_and_older_plans_are_read(tmp_path: Path) -> None:
    plan = plans((0, 1, 2))
    configuration = plan["configurations"]["3d_fullres"]
    arguments = configuration["architecture"]["arch_kwargs"]
    configuration["architecture"]["network_class_name"] = "elsewhere.ResidualEncoderUNet"
    arguments["n_blocks_per_stage"] = arguments.pop("n_conv_per_stage")
    modern = read_configuration(plan, "3d_child", "LPS")
    assert modern.architecture == "ResidualEncoderUNet"
    assert modern.input_transform.flipped == (1, 2)
    names = set(build(modern, 4).state_dict())
    old = deepcopy(configuration)
    del old["architecture"]
    old |= {
        "UNet_class_name": "ResidualEncoderUNet",
        "UNet_base_num_features": 8,
        "unet_max_num_features": 320,
        "n_conv_per_stage_encoder": [1, 1, 1],
        "n_conv_per_stage_decoder": [1, 1],
        "conv_kernel_sizes": [[3, 3, 3]] * 3,
        "pool_op_kernel_sizes": [[1, 1, 1], [2, 2, 2], [1, 2, 2]],
    }
    plan["configurations"]["3d_fullres"] = old
    plan["dataset_name"] = "Dataset291_TotalSegmentator_part1_organs_1559subj"
    older = read_configuration(plan, "3d_fullres", None)
    assert older.input_transform.flipped == ()
    assert set(build(older, 4).state_dict()) == names


def test_regions_are_sigmoids() -> None:
    labels = {"background": 0, "liver": [1, 2], "liver_tumour": [2], "spleen": [3]}
    read = read_labels(dataset(labels), NnunetChoices(name="m"), ABDOMEN_ATLAS, "d")
    assert read.organs == ("liver", "spleen")
    assert (read.head.activation, read.head.channels) == ("sigmoid", ((0,), (2,)))
    assert (read.outputs, read.values) == (3, {"liver": 1, "spleen": 3})


class _Harmful:
    """A pickle that makes a file when it is loaded."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return (os.system, (f"touch {self.path}",))


def _change(folder: Path, what: str) -> None:
    plan = json.loads((folder / "plans.json").read_text())
    described = json.loads((folder / "dataset.json").read_text())
    configuration = plan["configurations"]["3d_fullres"]
    checkpoint = folder / "fold_0" / "checkpoint_final.pth"
    if what == "code":
        torch.save({"network_weights": _Harmful(folder / "ran")}, checkpoint)
    elif what == "half":
        checkpoint.write_bytes(checkpoint.read_bytes()[:5000])
    elif what == "no checkpoint":
        checkpoint.unlink()
    elif what == "no plans":
        (folder / "plans.json").unlink()
        return
    elif what == "foreign class":
        configuration["architecture"]["arch_kwargs"]["nonlin"] = "os.system"
    elif what == "foreign network":
        configuration["architecture"]["network_class_name"] = "os.PathLike"
    elif what == "wider":
        configuration["architecture"]["arch_kwargs"]["features_per_stage"] = [8, 12, 24]
    elif what == "z-score":
        configuration["normalization_schemes"] = ["ZScoreNormalization"]
    elif what == "2d":
        configuration["patch_size"] = [64, 64]
    elif what == "no spacing":
        del configuration["spacing"]
    elif what == "two channels":
        described["channel_names"] = {"0": "CT", "1": "PET"}
    elif what == "gap":
        described["labels"]["liver"] = 9
    elif what == "no organ":
        described["labels"] = {"background": 0, "femur": 1, "liver_tumour": 2}
    (folder / "plans.json").write_text(json.dumps(plan))
    (folder / "dataset.json").write_text(json.dumps(described))


REFUSED: dict[str, tuple[type[AtlasError], str]] = {
    "code": (InvalidInput, "wants to run code"),
    "half": (CorruptFile, r"checkpoint_final\.pth: the checkpoint cannot be read"),
    "no checkpoint": (NotFound, "no trained fold"),
    "no plans": (NotFound, r"plans\.json"),
    "foreign class": (InvalidInput, "class for nonlin that is not served"),
    "foreign network": (InvalidInput, "network of nnU-Net is not served"),
    "wider": (InvalidInput, "does not fit the plans"),
    "z-score": (InvalidInput, "one CT channel"),
    "2d": (InvalidInput, "only 3D"),
    "no spacing": (CorruptFile, "spacing"),
    "two channels": (InvalidInput, "several image channels"),
    "gap": (InvalidInput, "not consecutive"),
    "no organ": (InvalidInput, "no label of the dataset is an organ"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_cannot_be_served_is_refused_and_leaves_nothing(tmp_path: Path, what: str) -> None:
    folder = write_result(tmp_path / "result", plans(), dataset())
    _change(folder, what)
    error, match = REFUSED[what]
    with pytest.raises(error, match=match):
        import_nnunet(
            folder,
            tmp_path / "out" / "m",
            chosen(labels={} if what == "no organ" else MORE),
            ABDOMEN_ATLAS,
        )
    assert not (tmp_path / "out").exists()
    assert not (folder / "ran").exists()


def test_an_orientation_is_never_guessed(result: Path) -> None:
    with pytest.raises(InvalidInput, match="--orientation"):
        load_nnunet(result, chosen(orientation=None), ABDOMEN_ATLAS)
    with pytest.raises(InvalidInput, match="cannot be imported"):
        load_nnunet(result, chosen(orientation="SAR"), ABDOMEN_ATLAS)
