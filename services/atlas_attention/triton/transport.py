"""How tensors reach the server and come back: in shared memory, or inside the messages.

Windows travel through shared memory where the server can map it, else as plain gRPC tensors; both
give the same bytes.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable
from typing import Protocol

import numpy as np
import tritonclient.grpc as triton
from atlas_core.errors import (
    ConfigurationError,
    Unavailable,
)
from atlas_core.model_spec import INPUT_NAME, OUTPUT_NAME, ModelSpec
from numpy.typing import NDArray
from tritonclient.utils import InferenceServerException

from atlas_attention.fusion import DeviceName
from atlas_attention.triton.client import CONTROL_TIMEOUT_S, SharedMemoryKind
from atlas_attention.triton.cuda_shared_memory import CudaRegion
from atlas_attention.triton.errors import server_errors, status_name, translate
from atlas_attention.triton.shared_memory import PREFIX, SHARED_MEMORY, SharedRegion, sweep
from atlas_attention.triton.window_buffers import (
    AnyRegion,
    WindowBuffers,
    register_region,
    unregister_region,
)

MAX_OUTPUTS = 16
"""Output regions that are kept for reuse per window, one for each member of the largest ensemble
(`fusion.MAX_MODELS`); more gather only when models change versions."""

_log = logging.getLogger(__name__)


class TensorTransport(Protocol):
    """How tensors reach the server and come back."""

    def stage(self, buffers: WindowBuffers, window: NDArray[np.float32]) -> triton.InferInput:
        """`window` (HU ``[z, y, x]``) as the input of requests to any model."""

    def request_output(
        self, buffers: WindowBuffers, spec: ModelSpec
    ) -> triton.InferRequestedOutput:
        """Where the answer of one model is to go."""

    def read(
        self, buffers: WindowBuffers, spec: ModelSpec, result: triton.InferResult
    ) -> NDArray[np.uint8]:
        """The answer of one model, uint8 ``[organ, z, y, x]``, in memory of its own.

        Raises:
            ConfigurationError: it has another form than the model's description says.
        """


class InlineTensors:
    """Tensors inside the gRPC messages; for a server on another machine."""

    def stage(self, buffers: WindowBuffers, window: NDArray[np.float32]) -> triton.InferInput:
        """See `TensorTransport`."""
        tensor = triton.InferInput(INPUT_NAME, [1, 1, *window.shape], "FP32")
        tensor.set_data_from_numpy(window[None, None])
        return tensor

    def request_output(
        self, buffers: WindowBuffers, spec: ModelSpec
    ) -> triton.InferRequestedOutput:
        """See `TensorTransport`."""
        return triton.InferRequestedOutput(OUTPUT_NAME)

    def read(
        self, buffers: WindowBuffers, spec: ModelSpec, result: triton.InferResult
    ) -> NDArray[np.uint8]:
        """See `TensorTransport`."""
        soft = result.as_numpy(OUTPUT_NAME)
        if soft is None:
            raise ConfigurationError(f"model {spec.ref} returned no {OUTPUT_NAME!r}")
        expected = (1, *_output_shape(spec))
        if soft.dtype != np.uint8 or soft.shape != expected:
            raise _wrong_output(spec, soft.dtype, soft.shape)
        return np.asarray(soft[0])


class SharedMemoryTensors:
    """Tensors in regions that the server maps; only their names are in the messages.

    Args:
        new_region: allocates a region of so many bytes.
    """

    def __init__(
        self, client: triton.InferenceServerClient, new_region: Callable[[int], AnyRegion]
    ) -> None:
        self._client = client
        self._new_region = new_region

    def stage(self, buffers: WindowBuffers, window: NDArray[np.float32]) -> triton.InferInput:
        """See `TensorTransport`."""
        if len(buffers.outputs) > MAX_OUTPUTS:
            self._drop_outputs(buffers)
        region = buffers.input = self._fitting(buffers, buffers.input, window.nbytes)
        buffers.register(self._client, region)
        region.write(window)
        tensor = triton.InferInput(INPUT_NAME, [1, 1, *window.shape], "FP32")
        tensor.set_shared_memory(region.name, window.nbytes)
        return tensor

    def request_output(
        self, buffers: WindowBuffers, spec: ModelSpec
    ) -> triton.InferRequestedOutput:
        """See `TensorTransport`."""
        size = int(np.prod(_output_shape(spec)))
        key = str(spec.ref)
        region = buffers.outputs[key] = self._fitting(buffers, buffers.outputs.get(key), size)
        buffers.register(self._client, region)
        output = triton.InferRequestedOutput(OUTPUT_NAME)
        output.set_shared_memory(region.name, size)
        return output

    def read(
        self, buffers: WindowBuffers, spec: ModelSpec, result: triton.InferResult
    ) -> NDArray[np.uint8]:
        """See `TensorTransport`."""
        output = result.get_output(OUTPUT_NAME)
        expected = (1, *_output_shape(spec))
        if output is None or output.datatype != "UINT8":
            raise _wrong_output(spec, getattr(output, "datatype", None), ())
        if tuple(output.shape) != expected:
            raise _wrong_output(spec, output.datatype, tuple(output.shape))
        # A copy: the region goes to the next window while the caller still blends this answer.
        return buffers.outputs[str(spec.ref)].read(_output_shape(spec))

    def _drop_outputs(self, buffers: WindowBuffers) -> None:
        """Free all output regions; none is in use while a window is being staged."""
        for region in buffers.outputs.values():
            self._free(buffers, region)
        buffers.outputs = {}

    def _fitting(self, buffers: WindowBuffers, region: AnyRegion | None, size: int) -> AnyRegion:
        """`region` if it holds `size` bytes, else a new one in its place."""
        if region is not None and region.size >= size:
            return region
        if region is not None:
            self._free(buffers, region)
        return self._new_region(size)

    def _free(self, buffers: WindowBuffers, region: AnyRegion) -> None:
        unregister_region(self._client, region)
        buffers.registered.discard(region.name)
        region.close()


def open_transport(
    client: triton.InferenceServerClient, wanted: SharedMemoryKind, device: DeviceName
) -> TensorTransport:
    """The transport `wanted`; ``auto``: the fastest that the server can use.

    Regions that dead processes left behind are unlinked first.

    Raises:
        ConfigurationError: the server cannot map the kind of shared memory that is wanted.
        Unavailable: the server does not answer.
    """
    kinds: list[tuple[SharedMemoryKind, Callable[[int], AnyRegion]]] = [("system", SharedRegion)]
    if device == "cuda":
        kinds.insert(0, ("cuda", CudaRegion))
    for kind, new_region in kinds:
        if wanted not in ("auto", kind):
            continue
        try:
            with server_errors():
                for name in sweep():
                    _log.info("swept a dead process's region", extra={"fields": {"region": name}})
                _require_mappable(client, new_region)
                # Not before: the regions of another machine's server are not missing here.
                _unmap_unlinked(client, device)
        except ConfigurationError as error:
            if wanted == kind:
                raise
            _log.warning("windows do not go by %s shared memory: %s", kind, error)
        else:
            return SharedMemoryTensors(client, new_region)
    return InlineTensors()


def _unmap_unlinked(client: triton.InferenceServerClient, device: DeviceName) -> None:
    """Have a server of this machine unmap what is unlinked."""
    status = client.get_system_shared_memory_status(client_timeout=CONTROL_TIMEOUT_S)
    for name in filter(_is_unlinked, status.regions):
        with contextlib.suppress(InferenceServerException):
            client.unregister_system_shared_memory(name, client_timeout=CONTROL_TIMEOUT_S)
    if device == "cuda":
        _unmap_unlinked_cuda(client)


def _unmap_unlinked_cuda(client: triton.InferenceServerClient) -> None:
    """The same for regions of GPU memory, whose owners hold a region of that name too."""
    # A server built without CUDA refuses the very question.
    with contextlib.suppress(InferenceServerException):
        status = client.get_cuda_shared_memory_status(client_timeout=CONTROL_TIMEOUT_S)
        for name in filter(_is_unlinked, status.regions):
            client.unregister_cuda_shared_memory(name, client_timeout=CONTROL_TIMEOUT_S)


def _is_unlinked(name: str) -> bool:
    """Whether the server's region `name` is one of ours that exists no more."""
    return name.startswith(PREFIX) and not (SHARED_MEMORY / name).exists()


def _require_mappable(
    client: triton.InferenceServerClient, new_region: Callable[[int], AnyRegion]
) -> None:
    """Refuse a kind of memory that the server cannot map, by trying it."""
    region = new_region(1)
    try:
        register_region(client, region)
        unregister_region(client, region)
    except InferenceServerException as error:
        if isinstance(translate(error), Unavailable) and status_name(error) == "UNAVAILABLE":
            raise
        raise ConfigurationError(
            "the model server cannot map this machine's shared memory",
            got=error.message(),
            remedy="share /dev/shm (for cuda also the GPU and the IPC namespace) with it, or "
            "set shared_memory=none",
        ) from None
    finally:
        region.close()


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
