"""The GPU interface of the stages: arrays in its memory, and the kernels of ``kernels.cu``."""

from __future__ import annotations

from importlib.resources import files
from typing import Any, Protocol

import numpy as np
from atlas_core.errors import ConfigurationError
from numpy.typing import NDArray

from atlas_attention.fusion.blending import WEIGHT_LEVELS
from atlas_attention.fusion.kernels import (
    ATTENTION_LEVELS,
    FRACTION_BITS,
    HALF_BYTE,
    HALF_STEP,
    KEEP_INCONSISTENCY,
    KEEP_UNCERTAINTY,
)
from atlas_attention.fusion.released import REACH

KERNELS = files("atlas_attention.fusion.gpu") / "kernels.cu"
"""CUDA source of all kernels."""

CONSTANTS = tuple(
    f"-D{name}={value}"
    for name, value in {
        "ATTENTION_LEVELS": ATTENTION_LEVELS,
        "FRACTION_BITS": FRACTION_BITS,
        "HALF_BYTE": HALF_BYTE,
        "HALF_STEP": HALF_STEP,
        "KEEP_INCONSISTENCY": KEEP_INCONSISTENCY,
        "KEEP_UNCERTAINTY": KEEP_UNCERTAINTY,
        "REACH": REACH,
        "WEIGHT_LEVELS": WEIGHT_LEVELS,
    }.items()
)
"""Compiler options: constants that CPU and GPU kernels share are defined only once."""

BLOCK_THREADS = 256
"""Threads of a block: a multiple of the warp size, and several blocks fit a multiprocessor."""

DeviceArray = Any
"""A CuPy array (untyped): NumPy's interface, in GPU memory."""


class Device(Protocol):
    """A device that runs the kernels."""

    @property
    def arrays(self) -> Any:
        """The array library whose arrays `launch` takes: its ``asarray`` uploads."""

    def launch(self, kernel: str, items: int, *arguments: DeviceArray | int | np.float32) -> None:
        """Runs a kernel of ``kernels.cu`` over `items` items.

        Launches, and copies through `arrays`, take effect in the order in which they are issued.

        Args:
            arguments: C-contiguous arrays of this device, integers, float32 scalars.
        """

    def to_host(self, array: DeviceArray) -> NDArray[Any]:
        """A copy in host memory, made once all launches before it are done."""


class CudaDevice:
    """The first GPU that CUDA shows this process (see ``CUDA_VISIBLE_DEVICES``), through CuPy.

    All work goes through the default stream, which keeps its order across threads.

    Raises:
        ConfigurationError: CuPy is not installed, or there is no usable GPU.
    """

    def __init__(self) -> None:
        self._cupy = import_cupy()
        self._module = self._cupy.RawModule(code=KERNELS.read_text("utf-8"), options=CONSTANTS)
        try:
            self.name = str(self._cupy.cuda.runtime.getDeviceProperties(0)["name"].decode())
            self._module.compile()
        except RuntimeError as error:  # of CUDA itself, and of libraries that are missing
            raise ConfigurationError(
                "the GPU cannot be used",
                expected="an NVIDIA GPU, its driver, and NVRTC",
                got=str(error).splitlines()[0],
                remedy="see nvidia-smi, or set ATLAS_ATTENTION_DEVICE=cpu",
            ) from None

    @property
    def arrays(self) -> Any:
        """See `Device.arrays`."""
        return self._cupy

    def launch(self, kernel: str, items: int, *arguments: DeviceArray | int | np.float32) -> None:
        """See `Device.launch`."""
        if items:
            self._module.get_function(kernel)(
                (-(-items // BLOCK_THREADS),),
                (BLOCK_THREADS,),
                tuple(np.int64(a) if isinstance(a, int) else a for a in arguments),
            )

    def to_host(self, array: DeviceArray) -> NDArray[Any]:
        """See `Device.to_host`."""
        return np.asarray(self._cupy.asnumpy(array))


def import_cupy() -> Any:
    """The module ``cupy``, which only the extra ``gpu`` installs.

    Raises:
        ConfigurationError: it is not installed.
    """
    try:
        import cupy
    except ImportError:
        raise ConfigurationError(
            "device=cuda needs CuPy, which is not installed",
            remedy="pip install 'atlasloop[attention,gpu]', or set ATLAS_ATTENTION_DEVICE=cpu",
        ) from None
    return cupy
