"""Small nnU-Nets, trained on phantoms by nnU-Net itself: what a site brings along.

    python -m atlas_flows.demos.phantom_nnunet models/demo/nnunet_results

Two of them come with this repository (`kept_results`). Plans are written by hand: nnU-Net's planner
would plan for a large GPU.
"""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from atlas_core.errors import NotFound
from atlas_core.phantoms import PHANTOM_ORGANS, Kind, PhantomGrid, make_phantom
from atlas_models.training import NnunetCase, NnunetRun, train_by_nnunet, write_raw

CONFIGURATION = "3d_fullres"

KEPT = Path(__file__).resolve().parents[3] / "models" / "demo" / "nnunet_results"

KEPT_OF_CHECKPOINT = (
    "network_weights",
    "trainer_name",
    "init_args",
    "inference_allowed_mirroring_axes",
)
"""What predicting and learning further need; the optimiser's state doubles the size."""

TRAINER = "nnUNetTrainerNoDA"
"""Without augmentation, which takes ten times as long as a network of this size."""

CT = {"mean": 60.0, "median": 55.0, "std": 90.0, "min": -500.0, "max": 1200.0,
      "percentile_00_5": -180.0, "percentile_99_5": 320.0}  # fmt: skip
"""Intensities of the phantoms' organs."""


@dataclass(frozen=True)
class SmallPlan:
    """What differs between plans; axes z, y, x."""

    spacing: tuple[float, float, float]
    patch: tuple[int, int, int]
    features: tuple[int, ...]
    kernels: tuple[tuple[int, int, int], ...]
    strides: tuple[tuple[int, int, int], ...]
    residual: bool = False


PLANS = {
    "fine": SmallPlan(
        spacing=(8.0, 8.0, 8.0),
        patch=(32, 32, 32),
        features=(8, 16, 32),
        kernels=((3, 3, 3),) * 3,
        strides=((1, 1, 1), (2, 2, 2), (2, 2, 2)),
    ),
    "anisotropic": SmallPlan(
        spacing=(12.0, 8.0, 8.0),
        patch=(16, 40, 40),
        features=(8, 16, 32),
        kernels=((1, 3, 3), (3, 3, 3), (3, 3, 3)),
        strides=((1, 1, 1), (1, 2, 2), (2, 2, 2)),
        residual=True,
    ),
}


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


def train_phantom_nnunet(
    folder: Path, plan: SmallPlan, *, cases: int, steps: int, seed: int = 0
) -> Path:
    """Train an nnU-Net on phantoms from scratch; a result folder as nnU-Net leaves it.

    A folder that is there and complete is taken as it is.
    """
    done = folder / "fold_all" / "checkpoint_final.pth"
    if done.exists():
        return folder
    values = {organ.name: organ.label for organ in PHANTOM_ORGANS}
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
        learning_rate=1e-2,
        trainer=TRAINER,
        epoch=50,
    )
    checkpoint = train_by_nnunet(
        run, lambda raw: write_raw(raw, _phantoms(cases, seed), dataset, values)
    )
    result = checkpoint.parent.parent
    (folder / "fold_all").mkdir(parents=True, exist_ok=True)
    for name in ("plans.json", "dataset.json"):
        shutil.copyfile(result / name, folder / name)
    content = torch.load(checkpoint, map_location="cpu", weights_only=False)
    torch.save({name: content[name] for name in KEPT_OF_CHECKPOINT}, done)
    shutil.rmtree(run.folder)
    return folder


def kept_results() -> dict[str, Path]:
    """Plan → result folder of the nnU-Nets that come with this repository.

    Raises:
        NotFound: this is no checkout of the repository.
    """
    for plan in PLANS:
        if not (KEPT / plan).is_dir():
            raise NotFound(
                "the nnU-Nets of the demo are not there",
                expected=KEPT / plan,
                remedy=f"run it from a checkout, or train them: python -m {__spec__.name} {KEPT}",
            )
    return {plan: KEPT / plan for plan in PLANS}


def _phantoms(cases: int, seed: int) -> Iterator[NnunetCase]:
    for number in range(cases):
        phantom = make_phantom(seed + number, Kind.ORDINARY, grid=PhantomGrid(columns=96))
        masks = {o.name: np.asarray(phantom.truth == o.label) for o in PHANTOM_ORGANS}
        yield NnunetCase(f"PHANTOM_{number:04}", phantom.ct, masks, phantom.geometry)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="A folder per plan is written here.")
    parser.add_argument("--plan", choices=PLANS, action="append", help="Default: all.")
    parser.add_argument("--cases", type=int, default=16)
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    for name in given.plan or PLANS:
        train_phantom_nnunet(
            given.folder / name,
            PLANS[name],
            cases=given.cases,
            steps=given.steps,
            seed=given.seed,
        )
