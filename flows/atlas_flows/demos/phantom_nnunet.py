"""Small nnU-Nets, trained on phantoms by nnU-Net itself: what a site brings along.

    python -m atlas_flows.demos.phantom_nnunet          (make demo-nnunets)
    python -m atlas_flows.demos.phantom_nnunet FOLDER --anatomies LABELS --anatomies …

Plans are written by hand: nnU-Net's planner would plan for a large GPU. They know the larger
organs; a network of this size needs no augmentation, and learns in minutes by Adam. The second
command trains one that sees real CTs, from CTs drawn from people's label maps (an hour).
"""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from atlas_core.atomic_writes import new_folder, replace_file
from atlas_core.imaging import read_label, write_volume
from atlas_core.organs import read_scheme
from atlas_core.phantoms import (
    ANATOMY_ORGANS,
    PHANTOM_ORGANS,
    Anatomy,
    Kind,
    PhantomGrid,
    draw_phantom,
    make_phantom,
    read_anatomy,
)
from atlas_models.evaluation.phantom_evaluation import dice_by_organ
from atlas_models.training import NnunetCase, NnunetRun, train_by_nnunet, write_raw
from numpy.typing import NDArray

KEPT = Path(__file__).resolve().parents[3] / "models" / "phantom_nnunets"
"""In a checkout: a result folder per plan, a few hundred kilobytes."""

CHECKPOINT = "checkpoint_final.pth"

NNUNET_OVERLAP = 0.5
"""Of windows, nnU-Net's usual."""

COLUMNS = 96
"""Of the phantoms: 3.7 mm, finer than any plan."""

HELD_OUT = 900
"""Seed of phantoms that no plan is trained on."""

CONFIGURATION = "3d_fullres"

KEPT_OF_CHECKPOINT = (
    "network_weights",
    "init_args",
    "inference_allowed_mirroring_axes",
)
"""What predicting and learning further need; the optimiser's state doubles the size."""

TRAINER = "nnUNetTrainerNoDA+nnUNetTrainerAdam"
"""Without augmentation, which takes ten times as long as a network of this size."""

LEARNING_RATE = 3e-3

CASES, STEPS = 16, 300
"""Phantoms and steps that suffice."""

EPOCH = 50
"""Steps between checkpoints."""

CT = {"mean": 60.0, "median": 55.0, "std": 90.0, "min": -500.0, "max": 1200.0,
      "percentile_00_5": -180.0, "percentile_99_5": 320.0}  # fmt: skip
"""Intensities of the phantoms' organs."""


@dataclass(frozen=True)
class SmallPlan:
    """What differs between plans; axes z, y, x.

    Attributes:
        organs: that it knows; all others are background.
        residual: with the encoder of nnU-Net's ResEnc plans.
    """

    spacing: tuple[float, float, float]
    patch: tuple[int, int, int]
    features: tuple[int, ...]
    kernels: tuple[tuple[int, int, int], ...]
    strides: tuple[tuple[int, int, int], ...]
    organs: tuple[str, ...] = PHANTOM_ORGANS.names
    residual: bool = False


LARGE = ("kidney_left", "kidney_right", "liver", "spleen", "stomach")

PLANS = {
    "fine": SmallPlan(
        spacing=(10.0, 10.0, 10.0),
        patch=(24, 28, 28),
        features=(16, 32, 64),
        kernels=((3, 3, 3),) * 3,
        strides=((1, 1, 1), (2, 2, 2), (2, 2, 2)),
        organs=("aorta", *LARGE),
    ),
    # Slices more than three times as thick as pixels: nnU-Net resamples along them by itself.
    "thick": SmallPlan(
        spacing=(20.0, 6.0, 6.0),
        patch=(8, 48, 48),
        features=(16, 32, 64),
        kernels=((1, 3, 3), (3, 3, 3), (3, 3, 3)),
        strides=((1, 1, 1), (1, 2, 2), (2, 2, 2)),
        organs=LARGE,
        residual=True,
    ),
}


DRAWN = "drawn"
DRAWN_PLAN = SmallPlan(
    spacing=(4.0, 4.0, 4.0),
    patch=(48, 56, 56),
    features=(16, 32, 64, 96),
    kernels=((3, 3, 3),) * 4,
    strides=((1, 1, 1), (2, 2, 2), (2, 2, 2), (2, 2, 2)),
)
"""Of what is trained on people's anatomies."""

DRAWN_CASES, DRAWN_STEPS = 160, 2500


def plans_of(plan: SmallPlan) -> dict[str, Any]:
    """``plans.json`` as nnU-Net's planner writes it."""
    stages = len(plan.features)
    blocks = "n_blocks_per_stage" if plan.residual else "n_conv_per_stage"
    network = "ResidualEncoderUNet" if plan.residual else "PlainConvUNet"
    resampling = {"is_seg": False, "order": 3, "order_z": 0, "force_separate_z": None}
    function = "resample_data_or_seg_to_shape"
    configuration = {
        "data_identifier": CONFIGURATION,
        "preprocessor_name": "DefaultPreprocessor",
        "batch_size": 2,
        "patch_size": list(plan.patch),
        "spacing": list(plan.spacing),
        "median_image_size_in_voxels": list(plan.patch),
        "normalization_schemes": ["CTNormalization"],
        "use_mask_for_norm": [False],
        "resampling_fn_data": function,
        "resampling_fn_seg": function,
        "resampling_fn_probabilities": function,
        "resampling_fn_data_kwargs": resampling,
        "resampling_fn_seg_kwargs": resampling | {"is_seg": True, "order": 1},
        "resampling_fn_probabilities_kwargs": resampling | {"order": 1},
        "batch_dice": True,
        "architecture": {
            "network_class_name": f"dynamic_network_architectures.architectures.unet.{network}",
            "arch_kwargs": {
                "n_stages": stages,
                "features_per_stage": list(plan.features),
                "conv_op": "torch.nn.modules.conv.Conv3d",
                "kernel_sizes": [list(kernel) for kernel in plan.kernels],
                "strides": [list(stride) for stride in plan.strides],
                blocks: [1] * stages,
                "n_conv_per_stage_decoder": [1] * (stages - 1),
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
    }
    return {
        "dataset_name": "Dataset001_Atlas",
        "plans_name": "nnUNetPlans",
        "original_median_spacing_after_transp": list(plan.spacing),
        "original_median_shape_after_transp": list(plan.patch),
        "image_reader_writer": "SimpleITKIO",
        "transpose_forward": [0, 1, 2],
        "transpose_backward": [0, 1, 2],
        "experiment_planner_used": "ExperimentPlanner",
        "label_manager": "LabelManager",
        "foreground_intensity_properties_per_channel": {"0": CT},
        "configurations": {CONFIGURATION: configuration},
    }


def kept_results() -> dict[str, Path]:
    """Plan → result folder of the nnU-Nets that are kept; see ``provenance.json`` in them."""
    return {plan: KEPT / plan for plan in PLANS if (KEPT / plan).exists()}


def train_phantom_nnunet(
    folder: Path,
    plan: SmallPlan,
    *,
    cases: int = CASES,
    steps: int = STEPS,
    seed: int = 0,
    anatomies: Sequence[Anatomy] = (),
) -> Path:
    """Train an nnU-Net on phantoms from scratch; a result folder as nnU-Net leaves it.

    A folder that is there is taken as it is; a training that was killed goes on.

    Args:
        anatomies: people to draw the CTs from, in turn, instead; they run along RAS+.
    """
    if folder.exists():
        return folder
    values = {organ: value for value, organ in enumerate(plan.organs, start=1)}
    dataset = {
        "channel_names": {"0": "CT"},
        "labels": {"background": 0, **values},
        "file_ending": ".nii.gz",
    }
    run = NnunetRun(
        folder=folder.with_name(f"{folder.name}-run"),
        plans=plans_of(plan),
        configuration=CONFIGURATION,
        dataset=dataset,
        weights=None,
        steps=steps,
        learning_rate=LEARNING_RATE,
        trainer=TRAINER,
        seed=seed,
        epoch=EPOCH,
    )
    checkpoint = train_by_nnunet(
        run, lambda raw: write_raw(raw, _phantoms(cases, seed, anatomies), dataset, values)
    )
    content = torch.load(checkpoint, map_location="cpu", weights_only=False)
    with new_folder(folder) as fresh:
        for name in ("plans.json", "dataset.json"):
            shutil.copyfile(checkpoint.parent.parent / name, fresh / name)
        (fresh / "fold_all").mkdir()
        # To find another one, nnU-Net's predictor imports all of them, which need more packages.
        kept = {name: content[name] for name in KEPT_OF_CHECKPOINT} | {
            "trainer_name": "nnUNetTrainer"
        }
        kept["network_weights"] = _halved(kept["network_weights"])
        torch.save(kept, fresh / "fold_all" / CHECKPOINT)
    shutil.rmtree(run.folder)
    return folder


def _halved(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """In float16, as our own exports: half the bytes. A tensor of two names stays one."""
    halves: dict[int, torch.Tensor] = {}
    return {name: halves.setdefault(w.data_ptr(), w.half()) for name, w in weights.items()}


def nnunets_own(
    result: Path, ct: Path, *, mirrored: bool = False, above_half: bool = False
) -> NDArray[np.uint8]:
    """Label map ``[i, j, k]`` of `ct`, a file ``…_0000.nii.gz``, by nnU-Net's own predictor.

    Its values are those of `PHANTOM_ORGANS`.

    Args:
        above_half: only where its softmax is above a half, as pseudo labels are.
    """
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

    predictor = nnUNetPredictor(
        tile_step_size=NNUNET_OVERLAP, use_mirroring=mirrored, device=torch.device("cpu"),
        verbose=False, allow_tqdm=False,
    )  # fmt: skip
    predictor.initialize_from_trained_model_folder(str(result), ("all",), CHECKPOINT)
    with TemporaryDirectory() as scratch:
        predicted = Path(scratch) / "label.nii.gz"
        predictor.predict_from_files_sequential(
            [[str(ct)]], [str(predicted)], save_probabilities=above_half
        )
        label = np.asarray(read_label(predicted).voxels)
        if above_half:
            (written,) = Path(scratch).glob("*.npz")
            soft = np.load(written)["probabilities"]
            label = np.where(soft.max(axis=0).T > 0.5, label, 0)
    named = json.loads((result / "dataset.json").read_bytes())["labels"]
    values = np.zeros(len(named), np.uint8)
    for organ in named.keys() & set(PHANTOM_ORGANS.names):
        values[named[organ]] = PHANTOM_ORGANS[organ].label
    return np.asarray(values[label])


def judge(result: Path, plan: SmallPlan, *, cases: int = 4, seed: int = HELD_OUT) -> dict[str, Any]:
    """Mean Dice of each organ on phantoms that it was not trained on."""
    found: dict[str, list[float]] = {organ: [] for organ in plan.organs}
    with TemporaryDirectory() as scratch:
        ct = Path(scratch) / "ct_0000.nii.gz"
        for number in range(cases):
            phantom = make_phantom(seed + number, grid=PhantomGrid(COLUMNS, axis_codes="RAS"))
            write_volume(ct, phantom.ct, phantom.geometry)
            dice = dice_by_organ(nnunets_own(result, ct), phantom.truth, plan.organs)
            for organ, value in dice.items():
                found[organ] += [] if value is None else [value]
    return {organ: round(float(np.mean(values)), 3) for organ, values in found.items() if values}


def _phantoms(cases: int, seed: int, anatomies: Sequence[Anatomy] = ()) -> Iterator[NnunetCase]:
    for number in range(cases):
        if anatomies:
            grid = PhantomGrid(COLUMNS, axis_codes="RAS")
            person = anatomies[number % len(anatomies)]
            phantom = draw_phantom(person, seed + number, Kind.ORDINARY, grid)
        else:
            phantom = make_phantom(seed + number, Kind.ORDINARY, grid=PhantomGrid(COLUMNS))
        masks = {o.name: np.asarray(phantom.truth == o.label) for o in PHANTOM_ORGANS}
        yield NnunetCase(f"PHANTOM_{number:04}", phantom.ct, masks, phantom.geometry)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, nargs="?", default=KEPT, help="One per plan in it.")
    parser.add_argument("--plan", choices=PLANS, action="append", help="Default: all.")
    parser.add_argument("--cases", type=int, help="Phantoms to learn from.")
    parser.add_argument("--steps", type=int)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--anatomies", type=Path, action="append", default=[],
        help="Draw CTs from this label map of TotalSegmentator's structures, or folder of masks.",
    )  # fmt: skip
    given = parser.parse_args()
    scheme = read_scheme(ANATOMY_ORGANS)
    people = [read_anatomy(path, scheme) for path in given.anatomies]
    plans = {DRAWN: DRAWN_PLAN} if people else {n: PLANS[n] for n in given.plan or PLANS}
    for name, plan in plans.items():
        if (given.folder / name).exists():
            continue
        told = {
            "cases": given.cases or (DRAWN_CASES if people else CASES),
            "steps": given.steps or (DRAWN_STEPS if people else STEPS),
            "seed": given.seed,
        }
        folder = train_phantom_nnunet(given.folder / name, plan, anatomies=people, **told)
        provenance = {
            "command": f"python -m atlas_flows.demos.phantom_nnunet --plan {name}",
            **told,
            "trainer": TRAINER,
            "dice_on_held_out_phantoms": judge(folder, plan),
            "libraries": {one: metadata.version(one) for one in ("nnunetv2", "torch")},
        }
        if people:
            provenance["command"] = "python -m atlas_flows.demos.phantom_nnunet --anatomies …"
            provenance["anatomies"] = [{"name": a.name, "sha256": a.sha256} for a in people]
        replace_file(folder / "provenance.json", f"{json.dumps(provenance, indent=1)}\n".encode())


if __name__ == "__main__":
    main()
