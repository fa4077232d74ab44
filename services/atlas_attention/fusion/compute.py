"""The device that blends and fuses soft predictions: CPU or GPU, with equal results to the bit."""

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
from atlas_attention.fusion.gpu.device import CudaDevice, Device, DeviceArray
from atlas_attention.fusion.gpu.fusion import open_gpu_fuser
from atlas_attention.fusion.threads import Threads
from atlas_attention.fusion.windows import Window, WindowPlan

DeviceName = Literal["cpu", "cuda"]


class WindowBlender(Protocol):
    """Blends the windows of one volume; see `blending.Blender`."""

    def open_row(self, k: int) -> None:
        """Prepares for the windows of z-row `k`; all slices settled before must have been read."""

    def add(self, window: Window, model: int, soft: NDArray[np.uint8]) -> None:
        """Adds the prediction of one model for one window of the open row."""

    def read(self, stop: int) -> SoftPredictions:
        """The blended slices from the last one read up to `stop`, for a fuser on this device."""


class Compute(Protocol):
    """Opens the blending and fusing stages for one volume."""

    def open_blender(
        self, plan: WindowPlan, models: int, organs: int, threads: Threads
    ) -> WindowBlender:
        """See `blending.Blender`."""

    def open_fuser(self, reading: Reading, threads: Threads) -> Fuser:
        """A fuser for the slices that the blender returns; its results are in host memory."""

    def to_host(self, soft: SoftPredictions) -> SoftPredictions:
        """Slices that the blender returned, in host memory."""


@dataclass(frozen=True)
class CpuCompute:
    """Compiled kernels on the cores of the CPU."""

    def open_blender(self, plan: WindowPlan, models: int, organs: int, threads: Threads) -> Blender:
        """See `Compute`."""
        return Blender(plan, models, organs, threads=threads)

    def open_fuser(self, reading: Reading, threads: Threads) -> Fuser:
        """See `Compute`."""
        return open_fuser(reading, threads=threads)

    def to_host(self, soft: SoftPredictions) -> SoftPredictions:
        """See `Compute`."""
        return soft


@dataclass(frozen=True)
class GpuCompute:
    """CUDA kernels: everything between the models' answers and fused slabs stays on `device`."""

    device: Device

    def open_blender(
        self, plan: WindowPlan, models: int, organs: int, threads: Threads
    ) -> GpuBlender:
        """See `Compute`."""
        return GpuBlender(self.device, plan, models, organs)

    def open_fuser(self, reading: Reading, threads: Threads) -> Fuser:
        """See `Compute`."""
        return open_gpu_fuser(self.device, reading)

    def to_host(self, soft: DeviceArray) -> SoftPredictions:
        """See `Compute`."""
        return self.device.to_host(soft)


def open_compute(device: DeviceName) -> Compute:
    """The stages on the device of this name.

    Raises:
        ConfigurationError: no GPU can be used; see `gpu.device.CudaDevice`.
    """
    return GpuCompute(CudaDevice()) if device == "cuda" else CpuCompute()
