"""Regions of GPU memory that a model server on the same machine can map too (CUDA IPC).

The service and the server must see the same GPU as their first one. When the owner dies its memory
goes with it, but the server keeps the name; so every region takes the name of a
`shared_memory.Region` that is locked as long as the owner lives, and is found by the same sweep.
"""

from __future__ import annotations

import base64

import numpy as np
from atlas_core.errors import ConfigurationError
from numpy.typing import NDArray

from atlas_attention.fusion.gpu.device import DeviceArray, import_cupy
from atlas_attention.triton.shared_memory import Region

GRANULE = 2 << 20
"""CUDA hands out smaller allocations as parts of one this large, and an IPC handle would share all
of it."""


class CudaRegion:
    """One region on the first GPU; freed by `close`.

    Attributes:
        name: under which the server is to know it.
        size: in bytes.
        key: the IPC handle, in base64 as tritonclient takes it.

    Raises:
        ConfigurationError: no CuPy, no GPU, not enough of its memory, or no CUDA IPC.
    """

    def __init__(self, size: int) -> None:
        self._cupy = import_cupy()
        self.size = size
        self._life = Region(1)
        self.name = self._life.name
        try:
            # Not out of CuPy's pool: a handle names a whole allocation.
            memory = self._cupy.cuda.Memory(-(-size // GRANULE) * GRANULE)
            self.key = base64.b64encode(self._cupy.cuda.runtime.ipcGetMemHandle(memory.ptr))
        except (RuntimeError, MemoryError) as error:
            self._life.close()
            raise ConfigurationError(
                "GPU memory for the model server cannot be had",
                expected=f"{size} bytes that can be shared by CUDA IPC",
                got=str(error).splitlines()[0],
                remedy="use fewer windows in flight, or shared_memory=system",
            ) from None
        pointer = self._cupy.cuda.MemoryPointer(memory, 0)
        self._bytes = self._cupy.ndarray((size,), np.uint8, pointer)

    def write(self, values: NDArray[np.float32]) -> None:
        """Puts `values` at the beginning, for the server to read from now on."""
        self._bytes[: values.nbytes].view(np.float32).reshape(values.shape).set(values)
        self._wait()

    def read(self, shape: tuple[int, ...]) -> DeviceArray:
        """A copy of the bytes at the beginning, on the GPU; the server may write again from now
        on."""
        copied = self._bytes[: int(np.prod(shape))].reshape(shape).copy()
        self._wait()
        return copied

    def close(self) -> None:
        """Free its memory, which no server may map any more."""
        self._bytes = None
        self._life.close()

    def _wait(self) -> None:
        """The server knows nothing of this process's stream."""
        self._cupy.cuda.get_current_stream().synchronize()
