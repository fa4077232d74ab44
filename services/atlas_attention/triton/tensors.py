"""How tensors reach the server and come back: in shared memory, or in the messages."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import tritonclient.grpc as triton
from atlas_core.errors import (
    ConfigurationError,
)
from atlas_core.model_spec import INPUT_NAME, OUTPUT_NAME, ModelSpec
from numpy.typing import NDArray
from tritonclient.utils import InferenceServerException

from atlas_attention.triton.cuda_shared_memory import CudaRegion
from atlas_attention.triton.shared_memory import Region

CONTROL_TIMEOUT_S = 5.0
"""For calls that the server answers from memory: index, configuration, registering a region."""


MAX_OUTPUTS = 8
"""Output regions that a berth keeps for reuse; more gather only when models change versions."""


Window = NDArray[np.float32]


Soft = NDArray[np.uint8]


AnyRegion = Region | CudaRegion


@dataclass(eq=False)
class _Berth:
    """Place of one window on its way; `window` is None while it is free.

    Tainted: a request ended without an answer. Quarantined: all have ended since, and the server is
    being made to let go of the regions; no request may join any more.
    """

    window: Window | None = None
    pending: int = 0
    tainted: bool = False
    quarantined: bool = False
    input: AnyRegion | None = None
    outputs: dict[str, AnyRegion] = field(default_factory=dict)
    registered: set[str] = field(default_factory=set)
    tensor: triton.InferInput | None = None
    lock: threading.Lock = field(default_factory=threading.Lock)

    def regions(self) -> list[AnyRegion]:
        return [r for r in (self.input, *self.outputs.values()) if r is not None]


@dataclass(eq=False)
class _Request:
    """One window at one model."""

    spec: ModelSpec
    berth: _Berth
    answer: Future[Soft]
    repeated: bool = False


class _Carrier(Protocol):
    """How tensors reach the server and come back."""

    def stage(self, berth: _Berth, window: Window) -> triton.InferInput: ...

    def request(self, berth: _Berth, spec: ModelSpec) -> triton.InferRequestedOutput: ...

    def read(self, berth: _Berth, spec: ModelSpec, result: triton.InferResult) -> Soft: ...


class _PlainTensors:
    """Tensors inside the gRPC messages; for a server on another machine."""

    def stage(self, berth: _Berth, window: Window) -> triton.InferInput:
        tensor = triton.InferInput(INPUT_NAME, [1, 1, *window.shape], "FP32")
        tensor.set_data_from_numpy(window[None, None])
        return tensor

    def request(self, berth: _Berth, spec: ModelSpec) -> triton.InferRequestedOutput:
        return triton.InferRequestedOutput(OUTPUT_NAME)

    def read(self, berth: _Berth, spec: ModelSpec, result: triton.InferResult) -> Soft:
        soft = result.as_numpy(OUTPUT_NAME)
        if soft is None:
            raise ConfigurationError(f"model {spec.ref} returned no {OUTPUT_NAME!r}")
        expected = (1, *_output_shape(spec))
        if soft.dtype != np.uint8 or soft.shape != expected:
            raise _wrong_output(spec, soft.dtype, soft.shape)
        return np.asarray(soft[0])


class _SharedTensors:
    """Tensors in regions that the server maps; only their names are in the messages."""

    def __init__(
        self, client: triton.InferenceServerClient, new_region: Callable[[int], AnyRegion]
    ) -> None:
        self._client = client
        self._new_region = new_region

    def stage(self, berth: _Berth, window: Window) -> triton.InferInput:
        if len(berth.outputs) > MAX_OUTPUTS:
            self._drop_outputs(berth)
        region = berth.input = self._fitting(berth, berth.input, window.nbytes)
        self._register(berth, region)
        region.write(window)
        tensor = triton.InferInput(INPUT_NAME, [1, 1, *window.shape], "FP32")
        tensor.set_shared_memory(region.name, window.nbytes)
        return tensor

    def request(self, berth: _Berth, spec: ModelSpec) -> triton.InferRequestedOutput:
        size = int(np.prod(_output_shape(spec)))
        key = str(spec.ref)
        region = berth.outputs[key] = self._fitting(berth, berth.outputs.get(key), size)
        self._register(berth, region)
        output = triton.InferRequestedOutput(OUTPUT_NAME)
        output.set_shared_memory(region.name, size)
        return output

    def read(self, berth: _Berth, spec: ModelSpec, result: triton.InferResult) -> Soft:
        described = result.get_output(OUTPUT_NAME)
        expected = (1, *_output_shape(spec))
        if described is None or described.datatype != "UINT8":
            raise _wrong_output(spec, getattr(described, "datatype", None), ())
        if tuple(described.shape) != expected:
            raise _wrong_output(spec, described.datatype, tuple(described.shape))
        # A copy: the berth goes to the next window while the caller still blends this one.
        return berth.outputs[str(spec.ref)].read(_output_shape(spec))

    def _drop_outputs(self, berth: _Berth) -> None:
        """Give back all output regions; none is in use while a window is being staged."""
        for region in berth.outputs.values():
            self._give_back(berth, region)
        berth.outputs = {}

    def _give_back(self, berth: _Berth, region: AnyRegion) -> None:
        _unregister(self._client, region)
        berth.registered.discard(region.name)
        region.close()

    def _fitting(self, berth: _Berth, region: AnyRegion | None, size: int) -> AnyRegion:
        if region is not None and region.size >= size:
            return region
        if region is not None:
            self._give_back(berth, region)
        return self._new_region(size)

    def _register(self, berth: _Berth, region: AnyRegion) -> None:
        if region.name not in berth.registered:
            _register(self._client, region)
            berth.registered.add(region.name)


def _register(client: triton.InferenceServerClient, region: AnyRegion) -> None:
    try:
        if isinstance(region, CudaRegion):
            client.register_cuda_shared_memory(
                region.name, region.key, 0, region.size, client_timeout=CONTROL_TIMEOUT_S
            )
        else:
            client.register_system_shared_memory(
                region.name, region.key, region.size, client_timeout=CONTROL_TIMEOUT_S
            )
    except InferenceServerException as error:
        # Names are unique, so this is the very region: after a restart of the server another
        # request of the same berth may have come first.
        if "already in manager" not in error.message():
            raise


def _unregister(client: triton.InferenceServerClient, region: AnyRegion) -> None:
    if isinstance(region, CudaRegion):
        client.unregister_cuda_shared_memory(region.name, client_timeout=CONTROL_TIMEOUT_S)
    else:
        client.unregister_system_shared_memory(region.name, client_timeout=CONTROL_TIMEOUT_S)


def _output_shape(spec: ModelSpec) -> tuple[int, int, int, int]:
    x, y, z = spec.patch
    return (len(spec.organs), z, y, x)


def _wrong_output(spec: ModelSpec, dtype: object, shape: tuple[int, ...]) -> ConfigurationError:
    return ConfigurationError(
        f"model {spec.name}@{spec.version} answers in another form than it describes",
        expected=f"{OUTPUT_NAME}: uint8 {(1, *_output_shape(spec))}",
        got=f"{dtype} {shape}",
        remedy="export the model with the uint8 head and install it again",
    )
