"""The GPU's kernels on a CPU: ``kernels.cu`` compiled as C++, NumPy in the place of CuPy."""

from __future__ import annotations

import ctypes
import importlib.util
import shutil
import subprocess
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from atlas_attention.fusion.gpu.device import CONSTANTS, KERNELS, CudaDevice, Device
from atlas_core.errors import ConfigurationError
from numpy.typing import NDArray

SHIM = Path(__file__).parent / "cuda_on_host.h"

BLOCKS, BLOCK_THREADS = 2, 3
"""Threads are played one after the other; these few show that shares neither miss nor overlap."""


class HostDevice:
    """A `Device` whose threads take turns in this one."""

    arrays = np

    def __init__(self, library: Path) -> None:
        self._library = ctypes.CDLL(str(library))

    def launch(self, kernel: str, items: int, *arguments: Any) -> None:
        if not items:
            return
        self._set("gridDim", BLOCKS)
        self._set("blockDim", BLOCK_THREADS)
        values = [_c_value(argument) for argument in arguments]
        # The last thread first: the order must not matter.
        for block, thread in product(reversed(range(BLOCKS)), reversed(range(BLOCK_THREADS))):
            self._set("blockIdx", block)
            self._set("threadIdx", thread)
            self._library[kernel](*values)

    def to_host(self, array: NDArray[Any]) -> NDArray[Any]:
        return array.copy()

    def _set(self, variable: str, value: int) -> None:
        ctypes.c_uint.in_dll(self._library, variable).value = value


def _c_value(argument: Any) -> Any:
    if isinstance(argument, np.ndarray):
        assert argument.flags.c_contiguous, "kernels take contiguous arrays"
        return ctypes.c_void_p(argument.ctypes.data)
    if isinstance(argument, np.float32):
        return ctypes.c_float(argument)
    assert isinstance(argument, int), type(argument)
    return ctypes.c_int64(argument)


@pytest.fixture(scope="session")
def host_device(tmp_path_factory: pytest.TempPathFactory) -> HostDevice:
    """The kernels compiled by the C++ compiler of this machine; skips where there is none."""
    compiler = shutil.which("c++") or shutil.which("g++") or shutil.which("clang++")
    if compiler is None:
        pytest.skip("THE GPU KERNELS ARE NOT TESTED: no C++ compiler (c++, g++, clang++)")
    library = tmp_path_factory.mktemp("kernels") / "kernels.so"
    subprocess.run(
        [
            compiler, "-std=c++17", "-O2", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC",
            "-ffp-contract=off", "-fno-strict-aliasing", *CONSTANTS,
            "-include", SHIM, "-x", "c++", str(KERNELS), "-o", library,
        ],
        check=True,
    )  # fmt: skip
    return HostDevice(library)


@pytest.fixture(
    scope="session", params=["host", *(["cuda"] if importlib.util.find_spec("cupy") else [])]
)
def device(request: pytest.FixtureRequest) -> Device:
    """The kernels on the CPU and, where the extra `gpu` is installed, on the GPU."""
    if request.param == "host":
        found: Device = request.getfixturevalue("host_device")
        return found
    try:
        return CudaDevice()
    except ConfigurationError as error:
        pytest.skip(f"NOT TESTED ON A GPU: {error}")
