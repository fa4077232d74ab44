"""Triton's `config.pbtxt` of one model, for CPU and GPU."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

from atlas_core.errors import CorruptFile, InvalidInput
from atlas_core.frozen_model import FrozenModel
from atlas_core.model_spec import INPUT_NAME, OUTPUT_NAME, ModelSpec
from atlas_core.triton_parameters import (
    IN_SERVICE_PARAMETER,
    descriptions,
    self_description,
    version_in_service,
)
from google.protobuf import text_format
from pydantic import Field, TypeAdapter
from tritonclient.grpc import model_config_pb2 as pb

from atlas_models.serving.exported_model import (
    _BACKEND_SOURCE,
    CONFIG_FILE,
    GRAPH_FILE,
    _parse_spec,
)


class _Serving(FrozenModel):
    max_batch_size: int = Field(default=4, ge=1, le=64, description="Windows in one request.")


class CpuServing(_Serving):
    """How a CPU serves a model: Triton's Python backend with OpenVINO or ONNX Runtime inside."""

    target: Literal["cpu"] = "cpu"
    runtime: Literal["auto", "openvino", "onnxruntime"] = Field(
        default="auto", description="auto: OpenVINO, and ONNX Runtime where that fails."
    )
    precision: Literal["f32", "bf16"] = Field(
        default="f32",
        description="bf16 is used where the CPU has it; it moves probabilities by up to 0.03.",
    )
    threads: int = Field(default=0, ge=0, le=1024, description="Of one window; 0: all cores.")
    streams: int = Field(default=1, ge=1, le=64, description="Windows that run at once.")
    cache_dir: Path | None = Field(
        default=None, description="Compiled graphs; a Swin UNETR takes seconds to compile."
    )


class GpuServing(_Serving):
    """How a GPU serves a model: Triton's ONNX Runtime backend with the TensorRT accelerator."""

    target: Literal["gpu"] = "gpu"
    max_batch_size: int = Field(default=8, ge=1, le=64, description="Windows in one execution.")
    precision: Literal["fp16", "fp32"] = "fp16"
    gpus: tuple[Annotated[int, Field(ge=0)], ...] = Field(
        default=(), description="Device numbers; empty: one set of instances on every GPU."
    )
    instances: int = Field(default=2, ge=1, le=16, description="Per GPU: one computes, one copies.")
    max_queue_delay_us: int = Field(
        default=2000, ge=0, description="Wait for a fuller batch; small against one inference."
    )
    workspace_bytes: int = Field(default=4 << 30, ge=1 << 20, description="TensorRT's scratch.")
    engine_cache_dir: Path = Field(
        default=Path("/var/cache/atlasloop/tensorrt"),
        description="Built engines; building takes minutes, so this must outlive the container.",
    )


Serving = CpuServing | GpuServing


_SERVING = TypeAdapter[Serving](Annotated[Serving, Field(discriminator="target")])


NEWEST = -1
"""In place of a version in service: the newest of those served."""


def model_config(
    specs: Sequence[ModelSpec], serving: Serving, in_service: int | None = NEWEST
) -> pb.ModelConfig:
    """Triton's configuration of one model that serves exactly the versions in `specs`.

    All versions share one input and output description, so they must agree on organs and patch.

    Args:
        in_service: t of the version that answers when no version is asked for; None: none does.

    Raises:
        InvalidInput: no version, a version twice, two names, versions of different shapes, or a
            version in service that is not among them.
    """
    newest = _require_one_model(specs)
    if in_service == NEWEST:
        in_service = newest.version
    if in_service is not None and in_service not in {spec.version for spec in specs}:
        raise InvalidInput(
            f"version {in_service} of model {newest.name} is not served",
            expected=", ".join(str(spec.version) for spec in specs),
            got=in_service,
        )
    z, y, x = reversed(newest.patch)
    config = pb.ModelConfig(
        name=newest.name,
        max_batch_size=serving.max_batch_size,
        input=[pb.ModelInput(name=INPUT_NAME, data_type=pb.TYPE_FP32, dims=[1, z, y, x])],
        output=[
            pb.ModelOutput(
                name=OUTPUT_NAME, data_type=pb.TYPE_UINT8, dims=[len(newest.organs), z, y, x]
            )
        ],
    )
    config.version_policy.specific.versions.extend(sorted(spec.triton_version for spec in specs))
    for name, text in self_description(specs, in_service).items():
        config.parameters[name].string_value = text
    if isinstance(serving, CpuServing):
        _serve_on_cpu(config, serving)
    else:
        _serve_on_gpu(config, serving)
    return config


def config_text(config: pb.ModelConfig) -> str:
    """`config` as the text of a ``config.pbtxt``."""
    return str(text_format.MessageToString(config))


def specs_in(config: pb.ModelConfig) -> tuple[ModelSpec, ...]:
    """The versions that `config` describes, oldest first.

    Raises:
        CorruptFile: a parameter holds no valid `ModelSpec`.
    """
    texts = descriptions(_parameters(config)).values()
    specs = [_parse_spec(text, config.name) for text in texts]
    return tuple(sorted(specs, key=lambda spec: spec.version))


def in_service_of(config: pb.ModelConfig) -> int | None:
    """t of the version in service by `config`; None: none. Without the parameter: the newest.

    Raises:
        CorruptFile: the parameter is not a number.
    """
    text = _parameters(config).get(IN_SERVICE_PARAMETER, "")
    if not text:
        versions = config.version_policy.specific.versions
        return max(versions) - 1 if versions else None
    try:
        return version_in_service(text)
    except ValueError:
        raise CorruptFile(
            f"{CONFIG_FILE} of model {config.name} is damaged",
            expected=f"a number in {IN_SERVICE_PARAMETER}",
            got=text,
        ) from None


def _parameters(config: pb.ModelConfig) -> dict[str, str]:
    return {name: parameter.string_value for name, parameter in config.parameters.items()}


def _require_one_model(specs: Sequence[ModelSpec]) -> ModelSpec:
    if not specs:
        raise InvalidInput("a model needs a version", expected="at least one ModelSpec", got="none")
    newest = max(specs, key=lambda spec: spec.version)
    for spec in specs:
        if spec.name != newest.name:
            raise InvalidInput("two models in one config", expected=newest.name, got=spec.name)
        if (spec.patch, spec.organs) != (newest.patch, newest.organs):
            raise InvalidInput(
                f"versions of model {newest.name} differ in shape",
                expected=f"version {newest.version}: patch {newest.patch}, organs {newest.organs}",
                got=f"version {spec.version}: patch {spec.patch}, organs {spec.organs}",
                remedy="serve them under two names, or remove the old version",
            )
    if len({spec.version for spec in specs}) != len(specs):
        raise InvalidInput(f"a version of model {newest.name} is given twice")
    return newest


def _serve_on_cpu(config: pb.ModelConfig, serving: CpuServing) -> None:
    config.backend = "python"
    config.instance_group.add(kind=pb.ModelInstanceGroup.KIND_CPU, count=1)
    # No request waits for a fuller batch; those that queued run side by side, a window per stream.
    config.dynamic_batching.preferred_batch_size.append(
        min(serving.streams, serving.max_batch_size)
    )
    options = {
        "runtime": serving.runtime,
        "precision": serving.precision,
        "threads": str(serving.threads),
        "streams": str(serving.streams),
        "cache_dir": str(serving.cache_dir.absolute()) if serving.cache_dir else "",
        # Only so that a server with an older backend sees that there is a new one to load.
        "backend": hashlib.sha256(_BACKEND_SOURCE.read_bytes()).hexdigest()[:12],
    }
    for key, value in options.items():
        config.parameters[f"atlasloop.{key}"].string_value = value


def _serve_on_gpu(config: pb.ModelConfig, serving: GpuServing) -> None:
    config.platform = "onnxruntime_onnx"
    config.backend = "onnxruntime"
    config.default_model_filename = GRAPH_FILE
    config.instance_group.add(
        kind=pb.ModelInstanceGroup.KIND_GPU, count=serving.instances, gpus=serving.gpus
    )
    full = serving.max_batch_size
    batching = config.dynamic_batching
    batching.preferred_batch_size.append(full)
    batching.max_queue_delay_microseconds = serving.max_queue_delay_us

    tensorrt = config.optimization.execution_accelerators.gpu_execution_accelerator.add(
        name="tensorrt"
    )
    window = "x".join(str(size) for size in config.input[0].dims)
    tensorrt.parameters.update(
        {
            "precision_mode": serving.precision.upper(),
            "max_workspace_size_bytes": str(serving.workspace_bytes),
            "trt_engine_cache_enable": "1",
            "trt_engine_cache_path": str(serving.engine_cache_dir / config.name),
            "trt_timing_cache_enable": "1",
            "trt_timing_cache_path": str(serving.engine_cache_dir / config.name),
            # One engine for every batch size: without a declared profile TensorRT builds a new
            # engine, for minutes, whenever a batch of another size arrives.
            "trt_profile_min_shapes": f"{INPUT_NAME}:1x{window}",
            "trt_profile_opt_shapes": f"{INPUT_NAME}:{full}x{window}",
            "trt_profile_max_shapes": f"{INPUT_NAME}:{full}x{window}",
        }
    )
    # The engine is built before the version counts as ready, not in the first user's request.
    for batch_size in sorted({1, full}):
        warmup = config.model_warmup.add(name=f"batch of {batch_size}", batch_size=batch_size)
        tensor = warmup.inputs[INPUT_NAME]
        tensor.data_type = pb.TYPE_FP32
        tensor.dims.extend(config.input[0].dims)
        tensor.zero_data = True
