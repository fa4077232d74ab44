"""Where soft predictions are blended and fused: on the CPU or a GPU, with the same result to the
bit."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
from atlas_core.records import Reading
from numpy.typing import NDArray

from atlas_attention.fusion.blending import Blender
from atlas_attention.fusion.fused import SoftPredictions
from atlas_attention.fusion.fusion import Fuser, open_fuser
from atlas_attention.fusion.gpu.blending import GpuBlender
from atlas_attention.fusion.gpu.device import CudaDevice, Device
from atlas_attention.fusion.gpu.fusion import open_gpu_fuser
from atlas_attention.fusion.threads import Threads
from atlas_attention.fusion.windows import Window, WindowPlan

DeviceName = Literal["cpu", "cuda"]


class WindowBlender(Protocol):
    """Blends the windows of one volume; `blending.Blender` says how."""

    def open_row(self, k: int) -> None:
        """Makes room for the windows of z-row `k`; the slices settled by row k − 1 must be read."""

    def add(self, window: Window, model: int, soft: NDArray[np.uint8]) -> None:
        """Adds what one model says in one window of the open row."""

    def read(self, stop: int) -> SoftPredictions:
        """The blended slices from the last one read up to `stop`, for the fuser opened beside."""


class Compute(Protocol):
    """Opens the stages of one volume."""

    def open_blender(
        self, plan: WindowPlan, models: int, organs: int, threads: Threads
    ) -> WindowBlender:
        """See `blending.Blender`."""

    def open_fuser(self, reading: Reading, threads: Threads) -> Fuser:
        """A fuser for what the blender reads out; its answers lie in the host's memory."""


@dataclass(frozen=True)
class CpuCompute:
    """Compiled kernels on the processor's cores."""

    def open_blender(self, plan: WindowPlan, models: int, organs: int, threads: Threads) -> Blender:
        """See `Compute`."""
        return Blender(plan, models, organs, threads=threads)

    def open_fuser(self, reading: Reading, threads: Threads) -> Fuser:
        """See `Compute`."""
        return open_fuser(reading, threads=threads)


@dataclass(frozen=True)
class GpuCompute:
    """CUDA kernels: what lies between the models' answers and the fused slabs stays on `device`."""

    device: Device

    def open_blender(
        self, plan: WindowPlan, models: int, organs: int, threads: Threads
    ) -> GpuBlender:
        """See `Compute`."""
        return GpuBlender(self.device, plan, models, organs)

    def open_fuser(self, reading: Reading, threads: Threads) -> Fuser:
        """See `Compute`."""
        return open_gpu_fuser(self.device, reading)


def open_compute(device: DeviceName) -> Compute:
    """The stages on the device of that name.

    Raises:
        ConfigurationError: no GPU can be used; see `gpu.device.CudaDevice`.
    """
    return GpuCompute(CudaDevice()) if device == "cuda" else CpuCompute()
