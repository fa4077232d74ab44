"""nnInteractive's own server, with a tiny network of seeded weights on the CPU.

As a program it serves one until it is stopped, for working on the page:

    python tests/nninteractive_server.py [--port 1527]

Its shapes are noise, but a function of the CT and of the prompts, like those of a trained network.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import httpx
import pytest
from ports import free_port

MISSING: Final = "NO NNINTERACTIVE: make setup-dev"
CONFIGURATION: Final = "3d_fullres"
PATCH: Final = (32, 32, 32)
START_TIMEOUT_S: Final = 300.0
_ARCHITECTURE: Final = {
    "network_class_name": "dynamic_network_architectures.architectures.unet.PlainConvUNet",
    "arch_kwargs": {
        "n_stages": 2,
        "features_per_stage": [4, 8],
        "conv_op": "torch.nn.modules.conv.Conv3d",
        "kernel_sizes": [[3, 3, 3], [3, 3, 3]],
        "strides": [[1, 1, 1], [2, 2, 2]],
        "n_conv_per_stage": [1, 1],
        "n_conv_per_stage_decoder": [1],
        "conv_bias": True,
        "norm_op": "torch.nn.modules.instancenorm.InstanceNorm3d",
        "norm_op_kwargs": {"eps": 1e-05, "affine": True},
        "dropout_op": None,
        "dropout_op_kwargs": None,
        "nonlin": "torch.nn.LeakyReLU",
        "nonlin_kwargs": {"inplace": True},
    },
    "_kw_requires_import": ["conv_op", "norm_op", "dropout_op", "nonlin"],
}
_PLANS: Final = {
    "dataset_name": "Dataset001_Phantoms",
    "plans_name": "nnUNetPlans",
    "image_reader_writer": "SimpleITKIO",
    "transpose_forward": [0, 1, 2],
    "transpose_backward": [0, 1, 2],
    "label_manager": "LabelManager",
    "foreground_intensity_properties_per_channel": {},
    "configurations": {
        CONFIGURATION: {
            "data_identifier": "plans_3d",
            "preprocessor_name": "DefaultPreprocessor",
            "batch_size": 2,
            "patch_size": list(PATCH),
            "median_image_size_in_voxels": list(PATCH),
            "spacing": [1.0, 1.0, 1.0],
            "normalization_schemes": ["ZScoreNormalization"],
            "use_mask_for_norm": [False],
            "batch_dice": False,
            "architecture": _ARCHITECTURE,
        }
    },
}
_DATASET: Final = {
    "channel_names": {"0": "CT"},
    "labels": {"background": 0, "object": 1},
    "numTraining": 1,
    "file_ending": ".nii.gz",
}


def write_model(folder: Path) -> Path:
    """A model folder as nnInteractive's training leaves it."""
    import torch
    from nnInteractive.trainer.nnInteractiveTrainer import nnInteractiveTrainer_stub
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    torch.manual_seed(7)
    manager = PlansManager(_PLANS)
    network = nnInteractiveTrainer_stub.build_network_architecture(
        manager, manager.get_configuration(CONFIGURATION), 8, 2, enable_deep_supervision=False
    )
    (folder / "fold_0").mkdir(parents=True)
    for name, content in (
        ("plans.json", _PLANS),
        ("dataset.json", _DATASET),
        ("inference_info.json", {"preferred_scribble_thickness": [2, 2, 2]}),
    ):
        (folder / name).write_text(json.dumps(content))
    checkpoint = {
        "trainer_name": "nnInteractiveTrainer_stub",
        "init_args": {"configuration": CONFIGURATION},
        "network_weights": network.state_dict(),
    }
    torch.save(checkpoint, folder / "fold_0" / "checkpoint_final.pth")
    return folder


def local_session(model: Path) -> Any:
    """nnInteractive's session in this process: what the server must say, too."""
    import torch
    from nnInteractive.inference.inference_session import nnInteractiveInferenceSession

    device = torch.device("cpu")
    session = nnInteractiveInferenceSession(device, torch_n_threads=1, do_autozoom=False)
    session.initialize_from_trained_model_folder(str(model), use_fold=0)
    return session


@dataclass
class RunningNnInteractive:
    """A server in a process of its own.

    Attributes:
        model: the folder that it serves.
    """

    model: Path
    port: int
    process: subprocess.Popen[bytes]

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def stop(self) -> None:
        """At once, as by a power cut."""
        self.process.kill()
        self.process.wait(timeout=30)


@contextlib.contextmanager
def running_nninteractive(
    model: Path, *arguments: str, port: int | None = None
) -> Iterator[RunningNnInteractive]:
    """`nninteractive-server`, killed at the end.

    It does not zoom out: where it does, it refines at random places, and noise, unlike an organ,
    has so many edges that it fails for want of places.
    """
    port = port or free_port()
    command = [
        sys.executable, "-m", "nnInteractive.inference.server.main", "--model-dir", str(model),
        "--fold", "0", "--device", "cpu", "--torch-n-threads", "1", "--no-autozoom",
        "--port", str(port), *arguments,
    ]  # fmt: skip
    log = model / f"server-{port}.log"
    with log.open("ab") as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT)
    running = RunningNnInteractive(model, port, process)
    try:
        _await(running, log)
        yield running
    finally:
        running.stop()


def _await(running: RunningNnInteractive, log: Path) -> None:
    deadline = time.monotonic() + START_TIMEOUT_S
    while True:
        with contextlib.suppress(httpx.TransportError):
            if httpx.get(f"{running.url}/healthz", trust_env=False).is_success:
                return
        assert running.process.poll() is None, f"the server ended: {log.read_text()}"
        assert time.monotonic() < deadline, f"the server does not start: {log.read_text()}"
        time.sleep(0.1)


@pytest.fixture(scope="session")
def nninteractive_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model folder; skips where nnInteractive is not installed."""
    if importlib.util.find_spec("nnInteractive.inference") is None:
        pytest.skip(MISSING)
    return write_model(tmp_path_factory.mktemp("nninteractive") / "model")


@pytest.fixture(scope="session")
def nninteractive(nninteractive_model: Path) -> Iterator[RunningNnInteractive]:
    """One server for the session, with two places."""
    with running_nninteractive(nninteractive_model, "--max-sessions", "2") as running:
        yield running


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, default=1527)
    port = parser.parse_args().port
    with (
        tempfile.TemporaryDirectory() as folder,
        running_nninteractive(write_model(Path(folder) / "model"), port=port) as running,
        contextlib.suppress(KeyboardInterrupt),
    ):
        sys.stdout.write(f"{running.url}\n")
        sys.stdout.flush()
        running.process.wait()


if __name__ == "__main__":
    main()
