"""What the service says of its models is what a client asks for by name."""

from __future__ import annotations

from pathlib import Path
from typing import cast
from unittest.mock import create_autospec

import grpc
from atlas_attention.observability import AttentionMetrics, Tracer
from atlas_attention.server.servicer import AttentionServicer
from atlas_attention.settings import AttentionSettings
from atlas_attention.triton import ServerModels, TritonPredictor
from atlas_core.model_spec import ModelSpec
from atlas_core.store import CaseStore
from atlasloop.answers import service_info
from atlasloop.attention.v1 import attention_pb2 as pb


def spec(name: str, version: int) -> ModelSpec:
    return ModelSpec(
        name=name, version=version, architecture="unet", organs=("liver",),
        spacing_mm=(1.5, 1.5, 1.5), patch=(8, 8, 8), hu_window=(-175.0, 250.0), sha256="a" * 64,
    )  # fmt: skip


class ModelsOnTrial:
    """unet@1 is in service; unet@2 is loaded beside it until it has proved itself."""

    READY = (spec("nnunet", 0), spec("unet", 0), spec("unet", 1), spec("unet", 2))

    def server_models(self) -> ServerModels:
        return ServerModels(self.READY, {"unet": 1})


def test_info_lists_the_versions_in_service_although_a_newer_one_is_loaded(tmp_path: Path) -> None:
    models = ModelsOnTrial()
    servicer = AttentionServicer(
        AttentionSettings(),
        CaseStore(tmp_path),
        cast(TritonPredictor, models),
        AttentionMetrics(),
        Tracer(),
    )
    context = create_autospec(grpc.ServicerContext, instance=True)
    info = service_info(servicer.GetInfo(pb.GetInfoRequest(), context))
    in_service = {(model.name, model.version) for model in info.models}
    assert in_service == {("nnunet", 0), ("unet", 1)}
    assert {(m.name, m.version) for m in info.older_models} == {("unet", 0), ("unet", 2)}
    by_name = models.server_models().choose(models=[model.name for model in info.models])
    assert {(s.name, s.version) for s in by_name.voices} == in_service
    # As long as nobody describes an ensemble, all in service are one.
    assert info.ensemble_in_use == "default"
    (ensemble,) = info.ensembles
    assert {(model.name, model.version) for model in ensemble.models} == in_service
