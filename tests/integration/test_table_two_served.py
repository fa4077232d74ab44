"""The architectures of the paper's Table 2, at demo size: trained, exported, served by Triton."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from atlas_attention.triton import TritonOptions, TritonPredictor
from atlas_core.model_spec import ModelSpec
from atlas_core.phantoms import PhantomGrid, make_phantom
from atlas_embedded.triton_environment import TritonEnvironment
from atlas_models.config import TrainingConfig, read_config
from atlas_models.exported_network import ExportedNetwork
from atlas_models.exporting import export_model, load_network, measure_parity
from atlas_models.serving import CpuServing, TritonRepository
from atlas_models.training import PatchSampler, RunOptions, phantom_case, train
from torch import nn
from triton_server import TritonServer

ARCHITECTURES = ("segresnet", pytest.param("unetr", marks=pytest.mark.long))

RUNTIME_TOLERANCE = 2
"""Bytes: one of rounding, and one of another runtime's arithmetic in the norms."""


@dataclass(frozen=True)
class Made:
    """A network after a few steps, as it was exported."""

    config: TrainingConfig
    network: nn.Module
    spec: ModelSpec
    folder: Path
    losses: tuple[float, ...]
    window: np.ndarray


@pytest.fixture(scope="module", params=ARCHITECTURES)
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Made:
    """Trained on one phantom on the grid and the patch that ship."""
    folder = tmp_path_factory.mktemp("table-two") / request.param
    config = read_config(f"demo/{request.param}", {"steps": 3})
    case = phantom_case(make_phantom(1, grid=PhantomGrid(64, 6.0)), config)
    trained = train(config, [case], run=RunOptions(accelerator="cpu"))
    spec = export_model(trained.network, config, folder)
    window = PatchSampler([case], config.patch, config.seed).draw(0, 1).hu[0, 0]
    return Made(config, trained.network, spec, folder, trained.losses, window)


@pytest.fixture(scope="module")
def predictor(
    made: Made,
    triton_environment: TritonEnvironment,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[TritonPredictor]:
    root = tmp_path_factory.mktemp("table-two-triton")
    repository = TritonRepository(root / "repository", CpuServing(cache_dir=root / "cache"))
    repository.install(made.folder)
    server = TritonServer(triton_environment, root / "repository", root / "triton.log")
    server.start([made.spec.name])
    opened = TritonPredictor(TritonOptions(server.address))
    yield opened
    opened.close()
    server.stop()


def test_a_few_steps_change_it_and_the_export_keeps_it(made: Made) -> None:
    assert np.isfinite(made.losses).all()
    assert len(made.losses) == 3
    parity = measure_parity(made.network, made.config, made.folder, [made.window])
    assert parity.probability <= 1e-4
    loaded, config = load_network(made.folder)
    assert config == made.config
    served = ExportedNetwork(loaded, config.hu_window)
    with torch.no_grad():
        again = served.probabilities(torch.from_numpy(made.window)[None, None])[0].numpy()
    assert np.abs(again - expected(made)).max() <= 1e-4


def test_triton_answers_what_the_network_computes(made: Made, predictor: TritonPredictor) -> None:
    answer = predictor.submit(made.spec, np.ascontiguousarray(made.window)).result()
    assert answer.shape == (9, *made.config.patch[::-1])
    difference = np.abs(answer.astype(int) - np.rint(255 * expected(made)).astype(int))
    assert difference.max() <= RUNTIME_TOLERANCE
    assert answer.max() > answer.min()


def expected(made: Made) -> np.ndarray:
    """Probabilities ``[organ, z, y, x]`` by PyTorch."""
    served = ExportedNetwork(made.network, made.config.hu_window).eval()
    with torch.no_grad():
        found: np.ndarray = served.probabilities(torch.from_numpy(made.window)[None, None])[
            0
        ].numpy()
    return found
