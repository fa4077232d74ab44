"""`blending.Blender` on a GPU: predictions are uploaded, and blended slices stay in its memory."""

from __future__ import annotations

import numpy as np

from atlas_attention.fusion.blending import require_answer, require_settled
from atlas_attention.fusion.gpu.device import Device, DeviceArray
from atlas_attention.fusion.windows import Window, WindowPlan


class GpuBlender:
    """Accumulates the predictions of one volume; see `blending.Blender`.

    Args:
        device: where.
        plan: where the windows lie.
        models, organs: channels of the predictions.
    """

    def __init__(self, device: Device, plan: WindowPlan, models: int, organs: int) -> None:
        depth = min(plan.patch[0], plan.grid[0])
        self._device = device
        self._plan = plan
        self._sums = device.arrays.zeros((models, organs, depth, *plan.grid[1:]), np.uint16)
        self._weights = device.arrays.zeros((depth, *plan.grid[1:]), np.uint16)
        self._shares = tuple(device.arrays.asarray(share) for share in plan.shares)
        self._row = -1
        self._read = 0

    def open_row(self, k: int) -> None:
        """See `blending.Blender.open_row`."""
        assert k == self._row + 1, "rows rise one by one"
        assert self._read >= self._plan.settled(k - 1), "settled slices are read"
        self._row = k
        for window in self._plan.row(k):
            self._launch("add_weights", window, (), self._weights)

    def add(self, window: Window, model: int, soft: DeviceArray) -> None:
        """See `blending.Blender.add`; an answer in host memory is uploaded.

        Raises:
            InvalidInput: another type or shape.
        """
        organs = self._sums.shape[1]
        require_answer(soft, organs, self._plan.patch)
        assert window.at[0] == self._row, "windows of the open row only"
        soft = self._device.arrays.ascontiguousarray(self._device.arrays.asarray(soft))
        self._launch("add_window", window, (soft, organs), self._sums[model])

    def read(self, stop: int) -> DeviceArray:
        """See `blending.Blender.read`; the slices stay on the device."""
        start, self._read = self._read, stop
        require_settled(self._plan, self._row, start, stop)
        models, organs, depth, rows, columns = self._sums.shape
        soft = self._device.arrays.empty((models, organs, stop - start, rows, columns), np.uint8)
        plane = rows * columns
        self._device.launch(
            "read_slices", (stop - start) * plane,
            self._sums, self._weights, models * organs, start, stop - start, depth, plane, soft,
        )  # fmt: skip
        return soft

    def _launch(
        self, kernel: str, window: Window, source: tuple[DeviceArray | int, ...], ring: DeviceArray
    ) -> None:
        shares = (share[at] for share, at in zip(self._shares, window.at, strict=True))
        self._device.launch(
            kernel, int(np.prod(self._plan.patch)),
            *source, *shares, *window.start, *self._plan.patch,
            self._plan.grid[0], *self._weights.shape, ring,
        )  # fmt: skip
