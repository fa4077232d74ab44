"""Regions of GPU memory that a model server on the same machine can map too (CUDA IPC).

The same GPU must be the first one of both the service and the server. When the owner dies, its
memory is freed, but the server keeps the name; so every region takes the name of a
`shared_memory.SharedRegion`, which is locked as long as the owner lives, and the same sweep finds
it.
"""

from __future__ import annotations

import base64

import numpy as np
from atlas_core.errors import ConfigurationError
from numpy.typing import NDArray

from atlas_attention.fusion.gpu.device import DeviceArray, import_cupy
from atlas_attention.triton.shared_memory import SharedRegion

GRANULE = 2 << 20
"""CUDA cuts smaller allocations out of one of this many bytes, and an IPC handle would share all of
it."""


class CudaRegion:
    """One region on the first GPU; freed by `close`.

    Attributes:
        name: under which it is registered with the server.
        size: in bytes.
        key: the IPC handle, in base64 as tritonclient takes it.

    Raises:
        ConfigurationError: no CuPy, no GPU, not enough of its memory, or no CUDA IPC.
    """

    def __init__(self, size: int) -> None:
        self._cupy = import_cupy()
        self.size = size
        self._lock_region = SharedRegion(1)
        self.name = self._lock_region.name
        try:
            # Not from CuPy's pool: a handle refers to a whole allocation.
            memory = self._cupy.cuda.Memory(-(-size // GRANULE) * GRANULE)
            self.key = base64.b64encode(self._cupy.cuda.runtime.ipcGetMemHandle(memory.ptr))
        except (RuntimeError, MemoryError) as error:
            self._lock_region.close()
            raise ConfigurationError(
                "GPU memory for the model server cannot be had",
                expected=f"{size} bytes that can be shared by CUDA IPC",
                got=str(error).splitlines()[0],
                remedy="use fewer windows in flight, or shared_memory=system",
            ) from None
        pointer = self._cupy.cuda.MemoryPointer(memory, 0)
        self._bytes = self._cupy.ndarray((size,), np.uint8, pointer)

    def write(self, values: NDArray[np.float32]) -> None:
        """Copies `values` to the beginning; the server may read them from now on."""
        self._bytes[: values.nbytes].view(np.float32).reshape(values.shape).set(values)
        self._wait()

    def read(self, shape: tuple[int, ...]) -> DeviceArray:
        """A copy of the bytes at the beginning, on the GPU; the server may overwrite them from now
        on."""
        copied = self._bytes[: int(np.prod(shape))].reshape(shape).copy()
        self._wait()
        return copied

    def close(self) -> None:
        """Free the memory; no server may still map it."""
        self._bytes = None
        self._lock_region.close()

    def _wait(self) -> None:
        """The server does not synchronise with this process's stream."""
        self._cupy.cuda.get_current_stream().synchronize()
