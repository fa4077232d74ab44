"""`fusion` on a GPU: soft predictions stay in its memory, results go to host memory."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import combinations
from typing import Final

import numpy as np
from atlas_core.records import Reading

from atlas_attention.fusion.agreement import Counts, no_counts
from atlas_attention.fusion.fused import (
    Fused,
    fusion_tables,
    mark_tables,
    require_form,
    require_same_width,
)
from atlas_attention.fusion.gpu.device import Device, DeviceArray
from atlas_attention.fusion.kernels import HALF_BYTE
from atlas_attention.fusion.released import HALO, MIN_INCONSISTENCY, MIN_UNCERTAINTY


def fuse_block(device: Device, soft: DeviceArray, gates: DeviceArray | None = None) -> Fused:
    """`fused.fuse_block` on a device: soft predictions and results are arrays in its memory.

    Args:
        device: where.
        soft: uint8 ``[model, organ, z, y, x]``.
        gates: see `fused.fuse_block`; becomes the attention.

    Raises:
        InvalidInput, LimitExceeded: see `fused.require_form`.
    """
    require_form(soft)
    soft = device.arrays.ascontiguousarray(soft)
    models, organs, *grid = soft.shape
    attention = device.arrays.empty((organs, *grid), np.uint8) if gates is None else gates
    mean = device.arrays.empty((organs, *grid), np.uint8)
    label = device.arrays.empty(grid, np.uint8)
    entropy, deviation = fusion_tables(models)
    device.launch(
        "fuse", label.size,
        soft, device.arrays.asarray(entropy), deviation, models, organs, label.size,
        int(gates is not None), attention, mean, label,
    )  # fmt: skip
    return Fused(attention, mean, label)


def counts_of(device: Device, soft: DeviceArray) -> Counts:
    """`agreement.Counts` of one block on a device; in host memory.

    Args:
        device: where.
        soft: uint8 ``[model, organ, z, y, x]``.
    """
    models, organs = soft.shape[:2]
    above = soft >= HALF_BYTE
    voxels = (1, 2, 3)
    rows = [above[n].sum(axis=voxels) for n in range(models)]
    rows += [(above[n] & above[m]).sum(axis=voxels) for n, m in combinations(range(models), 2)]
    if models == 1:
        rows.append((soft[0] * above[0]).sum(axis=voxels, dtype=np.int64))
    rows.append(soft.sum(axis=(0, 2, 3, 4), dtype=np.int64))
    counts = no_counts(models, organs)
    for k, row in enumerate(rows):
        counts[:, k] = device.to_host(row)
    return counts


def opened_gates(device: Device, soft: DeviceArray) -> DeviceArray:
    """Which terms of Eq. 4 reading `released` keeps, uint8 ``[organ, z, y, x]``.

    Args:
        device: where.
        soft: uint8 ``[model, organ, z, y, x]``.
    """
    models, _, depth, rows, columns = soft.shape
    entropy, least_entropy, least_spread = mark_tables(models, MIN_INCONSISTENCY, MIN_UNCERTAINTY)
    gates = device.arrays.empty(soft.shape[1:], np.uint8)
    count = gates.size
    device.launch(
        "mark", count,
        soft, device.arrays.asarray(entropy), least_entropy, least_spread, models, count, gates,
    )  # fmt: skip
    other = device.arrays.empty_like(gates)
    for erode in (1, 0):
        for length, stride in ((depth, rows * columns), (rows, columns), (columns, 1)):
            device.launch("filter_axis", count, gates, count, length, stride, erode, other)
            gates, other = other, gates
    return gates


class GpuPaperFuser:
    """`fusion.PaperFuser` on a device."""

    def __init__(self, device: Device) -> None:
        self._device = device
        self._first: DeviceArray | None = None
        self.counts = no_counts(1, 0)

    def push(self, soft: DeviceArray) -> Fused:
        """See `fusion.Fuser.push`; the result is in host memory."""
        require_same_width(self._first, soft)
        fused = _on_host(self._device, fuse_block(self._device, soft))
        if self._first is None:
            self.counts = no_counts(*soft.shape[:2])
        self.counts += counts_of(self._device, soft)
        self._first = soft[:, :, :0].copy()  # its width, without its memory
        return fused

    def finish(self) -> Fused:
        """See `fusion.Fuser.finish`."""
        return _no_slices(self._first)


class GpuReleasedFuser:
    """`released.ReleasedFuser` on a device; lags `released.HALO` slices behind.

    Holds that many slices on either side of those to be returned, and opens their gates again for
    every slab: on a GPU that is cheaper than keeping the gates as well.
    """

    def __init__(self, device: Device) -> None:
        self._device = device
        self._held: DeviceArray | None = None
        self._returned = 0  # of the slices held
        self.counts = no_counts(1, 0)

    def push(self, soft: DeviceArray) -> Fused:
        """See `fusion.Fuser.push`; the result is in host memory."""
        require_form(soft)
        require_same_width(self._held, soft)
        if self._held is None:
            self.counts = no_counts(*soft.shape[:2])
        self.counts += counts_of(self._device, soft)
        if self._held is not None:
            soft = self._device.arrays.concatenate([self._held, soft], axis=2)
        self._held = soft
        return self._fuse_up_to(soft.shape[2] - HALO)

    def finish(self) -> Fused:
        """See `fusion.Fuser.finish`."""
        return _no_slices(None) if self._held is None else self._fuse_up_to(self._held.shape[2])

    def _fuse_up_to(self, stop: int) -> Fused:
        """The slices held from the first one that has not been returned up to `stop`."""
        held, start = self._held, self._returned
        if stop <= start:
            return _no_slices(held)
        assert held is not None
        held = self._device.arrays.ascontiguousarray(held)
        gates = opened_gates(self._device, held)[:, start:stop]
        fused = fuse_block(
            self._device, held[:, :, start:stop], self._device.arrays.ascontiguousarray(gates)
        )
        keep = max(0, stop - HALO)
        # A copy, or a view of a few slices would keep the memory of all.
        self._held, self._returned = held[:, :, keep:].copy(), stop - keep
        return _on_host(self._device, fused)


_FUSERS: Final[Mapping[Reading, type[GpuPaperFuser | GpuReleasedFuser]]] = {
    Reading.PAPER: GpuPaperFuser,
    Reading.RELEASED: GpuReleasedFuser,
}


def open_gpu_fuser(device: Device, reading: Reading) -> GpuPaperFuser | GpuReleasedFuser:
    """A new fuser for one volume in the reading `paper` or `released`; see `fusion.open_fuser`.

    What is opened is opened on the host, where the fused slabs go.
    """
    return _FUSERS[reading](device)


def _on_host(device: Device, fused: Fused) -> Fused:
    return Fused(*map(device.to_host, (fused.attention, fused.mean, fused.label)))


def _no_slices(soft: DeviceArray | None) -> Fused:
    return Fused.empty(0, 0, 0) if soft is None else Fused.empty(soft.shape[1], *soft.shape[3:])
