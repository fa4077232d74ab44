"""A real Triton, started as chart and compose file start it: who may do what with models?"""

from __future__ import annotations

import http.client
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path

import grpc
import pytest
import tritonclient.grpc as triton
from atlas_attention.triton import TritonOptions, TritonPredictor
from atlas_core.errors import ConfigurationError
from atlas_embedded.triton_environment import TritonEnvironment
from atlas_embedded.triton_models import TritonModels
from atlas_models.serving import CpuServing, TritonRepository
from compose_config import triton_arguments
from grpc_health.v1 import health_pb2, health_pb2_grpc
from rendered_chart import container, render
from triton_server import TritonServer, install
from tritonclient.utils import InferenceServerException

KEY = "0123456789abcdef" * 4
PLACES = ("--model-repository=", "--grpc-port=", "--metrics-port=")
"""Where a test's server has its own."""


def chart_arguments() -> list[str]:
    """As Kubernetes gives them, which puts variables in place."""
    triton = container(render("production"), "triton")
    assert triton["command"] == ["tritonserver"]
    return [argument.replace("$(TRITON_CONTROL_KEY)", KEY) for argument in triton["args"]]


@pytest.fixture(params=["chart", "compose"])
def server(
    request: pytest.FixtureRequest,
    triton_environment: TritonEnvironment,
    tiny_models: dict[str, Path],
    tmp_path: Path,
) -> Iterator[TritonServer]:
    given = chart_arguments() if request.param == "chart" else triton_arguments(tmp_path, KEY)
    assert {place for place in PLACES for word in given if word.startswith(place)} == set(PLACES)
    arguments = [word for word in given if not word.startswith(PLACES)]
    install(tmp_path / "repository", [tiny_models["conv_a@0"], tiny_models["conv_b@0"]])
    server = TritonServer(
        triton_environment, tmp_path / "repository", tmp_path / "triton.log", arguments
    )
    server.start()
    yield server
    server.stop()


def served(address: str) -> Sequence[str]:
    predictor = TritonPredictor(TritonOptions(address))
    try:
        return [spec.name for spec in predictor.ready_models()]
    finally:
        predictor.close()


def test_all_may_infer_and_only_who_has_the_key_may_load(server: TritonServer) -> None:
    # `--load-model=*`: after a restart everything is there again, without anybody's doing.
    assert served(server.address) == ["conv_a", "conv_b"]
    # The probes of the chart and of compose carry no key.
    with grpc.insecure_channel(server.address) as channel:
        health = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest())
    assert health.status == health_pb2.HealthCheckResponse.SERVING
    with urllib.request.urlopen(f"{server.metrics}/metrics", timeout=30) as answer:
        assert answer.status == 200
    # No page of a browser comes in.
    for closed in (server.http, f"http://{server.address}"):
        with pytest.raises((urllib.error.URLError, http.client.HTTPException)):
            urllib.request.urlopen(f"{closed}/v2/health/live", timeout=30)
    # Attention infers; it has no key, and needs none.
    predictor = TritonPredictor(TritonOptions(server.address))
    predictor.probe(predictor.ensemble()[0])
    predictor.close()
    # It, or anybody else without the key, may not change what is loaded.
    with triton.InferenceServerClient(server.address) as client:
        for forbidden in (client.unload_model, client.load_model):
            with pytest.raises(InferenceServerException, match="restricted"):
                forbidden("conv_a")
    assert served(server.address) == ["conv_a", "conv_b"]


def test_flows_load_and_unload_by_the_key(server: TritonServer, tmp_path: Path) -> None:
    repository = TritonRepository(tmp_path / "repository", CpuServing(runtime="onnxruntime"))
    stranger = TritonModels(server.address, repository, 60.0, control_key="wrong")
    with pytest.raises(ConfigurationError, match="does not let us control"):
        stranger.load("conv_a")
    flows = TritonModels(server.address, repository, 60.0, control_key=KEY)
    flows.unload("conv_a")
    assert served(server.address) == ["conv_b"]
    flows.load("conv_a")
    assert served(server.address) == ["conv_a", "conv_b"]
