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

ARCHITECTURES = ("segresnet", "unetr")

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


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Made]:
    """Both, trained on one phantom on the grid and the patch that ship."""
    root = tmp_path_factory.mktemp("table-two")
    phantom = make_phantom(1, grid=PhantomGrid(64, 6.0))
    found = {}
    for name in ARCHITECTURES:
        config = read_config(f"demo/{name}", {"steps": 3})
        case = phantom_case(phantom, config)
        trained = train(config, [case], run=RunOptions(accelerator="cpu"))
        spec = export_model(trained.network, config, root / name)
        window = PatchSampler([case], config.patch, config.seed).draw(0, 1).hu[0, 0]
        found[name] = Made(config, trained.network, spec, root / name, trained.losses, window)
    return found


@pytest.fixture(scope="module")
def predictor(
    made: dict[str, Made],
    triton_environment: TritonEnvironment,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[TritonPredictor]:
    root = tmp_path_factory.mktemp("table-two-triton")
    repository = TritonRepository(root / "repository", CpuServing(cache_dir=root / "cache"))
    for one in made.values():
        repository.install(one.folder)
    server = TritonServer(triton_environment, root / "repository", root / "triton.log")
    server.start(ARCHITECTURES)
    opened = TritonPredictor(TritonOptions(server.address))
    yield opened
    opened.close()
    server.stop()


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_few_steps_change_it_and_the_export_keeps_it(name: str, made: dict[str, Made]) -> None:
    one = made[name]
    assert np.isfinite(one.losses).all()
    assert len(one.losses) == 3
    parity = measure_parity(one.network, one.config, one.folder, [one.window])
    assert parity.probability <= 1e-4
    loaded, config = load_network(one.folder)
    assert config == one.config
    served = ExportedNetwork(loaded, config.hu_window)
    with torch.no_grad():
        again = served.probabilities(torch.from_numpy(one.window)[None, None])[0].numpy()
    assert np.abs(again - expected(one)).max() <= 1e-4


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_triton_answers_what_the_network_computes(
    name: str, made: dict[str, Made], predictor: TritonPredictor
) -> None:
    one = made[name]
    answer = predictor.submit(one.spec, np.ascontiguousarray(one.window)).result()
    assert answer.shape == (9, *one.config.patch[::-1])
    difference = np.abs(answer.astype(int) - np.rint(255 * expected(one)).astype(int))
    assert difference.max() <= RUNTIME_TOLERANCE
    assert answer.max() > answer.min()


def expected(one: Made) -> np.ndarray:
    """Probabilities ``[organ, z, y, x]`` by PyTorch."""
    served = ExportedNetwork(one.network, one.config.hu_window).eval()
    with torch.no_grad():
        found: np.ndarray = served.probabilities(torch.from_numpy(one.window)[None, None])[
            0
        ].numpy()
    return found
