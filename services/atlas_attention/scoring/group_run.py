"""One group of members over one CT: windows cut out on their grid, answers blended, and slices of
the blended predictions read on the fusion grid."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import product

import numpy as np
from atlas_core.geometry import Float3
from atlas_core.imaging.spline_weights import nnunet_weights
from atlas_core.model_spec import ModelSpec, Windows
from numpy.typing import NDArray

from atlas_attention.fusion import (
    Box,
    Compute,
    Panel,
    SoftPredictions,
    Threads,
    Window,
    WindowPlan,
    Zyx,
)
from atlas_attention.scoring.body_box import on_grid
from atlas_attention.scoring.fusion_grid import FusionGridReader
from atlas_attention.scoring.members import FusionPlan, Group
from atlas_attention.scoring.model_grid import CtSource, ModelGridReader, extract_window, to_zyx

Flips = tuple[int, ...]
"""Axes of a window ``[z, y, x]`` along which it is mirrored."""

MIRRORINGS: tuple[Flips, ...] = tuple(
    tuple(axis for axis, flipped in enumerate(flips) if flipped)
    for flips in product((False, True), repeat=3)
)
"""All eight of a window, itself first."""


def window_plan(
    source: CtSource,
    spacing_mm: Float3,
    patch: Zyx,
    overlap: float,
    body: Box | None,
    windows: Windows = "body",
) -> WindowPlan:
    """Where the windows of one grid lie in a CT.

    Args:
        spacing_mm: of the grid, along x, y, z.
        patch: voxels (z, y, x).
        overlap: of neighbouring windows, as a share of the patch.
        body: what they are to cover, in voxels of the canonical grid; None: everything.
        windows: `volume` covers everything in any case.
    """
    grid = to_zyx(source.canonical.resampled(spacing_mm).shape)
    if windows == "volume":
        return WindowPlan.as_nnunet(grid, patch, overlap)
    box = None if body is None else on_grid(body, to_zyx(source.canonical.shape), grid)
    return WindowPlan.over(grid, patch, overlap, box)


class GroupRun:
    """Takes the windows of one group, z-row by z-row, and the answers in the order of the windows.

    Args:
        source: the CT.
        members: how the ensemble comes together.
        group: the group.
        body: see `window_plan`.
        fusion_grid: voxels (z, y, x) of the grid on which slices are read.
        compute: where answers are blended.
        alone: see `FusionPlan.is_alone_on`; slices are then read as they are blended.
        slab_slices: most slices resampled at once; bounds memory.
        threads: see `fusion.Threads`.
    """

    def __init__(
        self,
        source: CtSource,
        members: FusionPlan,
        group: Group,
        body: Box | None,
        fusion_grid: Zyx,
        *,
        compute: Compute,
        alone: bool,
        slab_slices: int,
        threads: Threads,
    ) -> None:
        plan = window_plan(
            source, group.spacing_mm, group.patch, group.overlap, body, group.windows
        )
        self.plan = plan
        self.fusion_grid = fusion_grid
        self.specs: dict[int, ModelSpec] = {m: members.specs[m] for m in group.members}
        self._ct = _reader(source, group, plan.grid, slab_slices)
        self._parts = group.parts
        self._padding_hu = group.padding_hu
        copied = group.copied_axis(source.canonical)
        self._blenders = [
            compute.open_blender(plan, len(part.members), len(part.organs), threads)
            for part in group.parts
        ]
        self._readers = [
            FusionGridReader(blender, plan, fusion_grid, compute.to_host, threads, copied)
            for blender in self._blenders
        ]
        self._settled = 0
        self._alone = alone
        self._places = {
            member: (part, at)
            for part, of_group in enumerate(group.parts)
            for at, member in enumerate(of_group.members)
        }
        self._mirrored: dict[int, NDArray[np.uint16]] = {}
        self.constant: dict[int, int | None] = {}
        """By member the byte that all its answers consist of; None: they differ."""

    @property
    def mirrorings(self) -> tuple[Flips, ...]:
        """How each window is to be predicted."""
        return MIRRORINGS if self._mirroring else MIRRORINGS[:1]

    @property
    def predictions(self) -> int:
        """Of all windows, by all members, in all mirrorings."""
        mirrored = len(self._mirroring)
        return len(self.plan) * (len(self.specs) - mirrored + mirrored * len(MIRRORINGS))

    @property
    def ready(self) -> int:
        """Slices of the fusion grid that no window to come touches."""
        return self._settled if self._alone else self._readers[0].ready(self._settled)

    def members_of(self, flips: Flips) -> tuple[int, ...]:
        """Who predicts windows that are mirrored like this."""
        return tuple(self._mirroring) if flips else tuple(self.specs)

    def read_row(self, k: int) -> NDArray[np.float32]:
        """The slices of the CT that the windows of z-row `k` cover, HU ``[z, y, x]``."""
        return self._ct.read(*self.plan.z_range(k))

    def cut(self, block: NDArray[np.float32], window: Window, flips: Flips) -> NDArray[np.float32]:
        """Hounsfield units of one window ``[z, y, x]``, mirrored; `block`: see `read_row`."""
        voxels = extract_window(block, window, self.plan, self._padding_hu)
        return np.ascontiguousarray(np.flip(voxels, flips)) if flips else voxels

    def settle(self, row: int) -> None:
        """All windows up to z-row `row` have been added; −1: none has, `WindowPlan.rows`: all, and
        the slices above them are wanted too."""
        self._settled = self.plan.settled(row)

    def open_row(self, k: int) -> None:
        """Before the windows of z-row `k` are added."""
        for blender, reader in zip(self._blenders, self._readers, strict=True):
            if not self._alone:
                reader.flush(self._settled)
            blender.open_row(k)

    def add(self, window: Window, member: int, flips: Flips, soft: NDArray[np.uint8]) -> None:
        """Adds one answer of a member, to a window that was mirrored along `flips`."""
        self._watch(member, soft)
        part, at = self._places[member]
        answered = self._parts[part].answered[at]
        if answered is not None:
            soft = soft[list(answered)]
        if self.specs[member].mirrored:
            soft = self._averaged(member, flips, soft)
            if flips != MIRRORINGS[-1]:
                return
        self._blenders[part].add(window, at, soft)

    def read_blended(self, stop: int) -> SoftPredictions:
        """The slices up to `stop` as they were blended, of a group that is alone."""
        return self._blenders[0].read(stop)

    def read(self, stop: int, planes: Mapping[tuple[int, int], NDArray[np.uint8]]) -> None:
        """The slices from the last one read up to `stop` of the fusion grid.

        Args:
            planes: for each member and organ (channel of the ensemble) of the group ``[z, y, x]``,
                zero before.
        """
        for part, reader in zip(self._parts, self._readers, strict=True):
            reader.read(
                stop, [planes[member, organ] for member in part.members for organ in part.organs]
            )

    @property
    def _mirroring(self) -> list[int]:
        return [member for member, spec in self.specs.items() if spec.mirrored]

    def _watch(self, member: int, soft: NDArray[np.uint8]) -> None:
        """Notes whether all answers of a member consist of one byte; costs nothing once they do
        not."""
        if member in self.constant and self.constant[member] is None:
            return
        low, high = int(soft.min()), int(soft.max())
        same = low == high == self.constant.get(member, low)
        self.constant[member] = low if same else None

    def _averaged(self, member: int, flips: Flips, soft: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """The mean of the mirrorings so far, turned back, rounded half up; of use with the last."""
        turned = np.flip(soft, tuple(1 + axis for axis in flips))
        if not flips:
            self._mirrored[member] = turned.astype(np.uint16)
        else:
            self._mirrored[member] += turned
        if flips != MIRRORINGS[-1]:
            return soft
        count = len(MIRRORINGS)
        total = self._mirrored.pop(member)
        return ((total + np.uint16(count // 2)) // np.uint16(count)).astype(np.uint8)


def _reader(source: CtSource, group: Group, grid: Zyx, slab_slices: int) -> ModelGridReader:
    """The CT on the group's grid."""
    if group.clip_hu is None:
        return ModelGridReader(source, grid, slab_slices)
    x, y, z = group.spacing_mm
    old_x, old_y, old_z = source.canonical.spacing_mm
    weights = nnunet_weights((old_z, old_y, old_x), (z, y, x), to_zyx(source.canonical.shape), grid)
    return ModelGridReader(source, grid, slab_slices, weights=weights, clip_hu=group.clip_hu)


def rows_in_step(runs: Sequence[GroupRun]) -> list[tuple[GroupRun, int]]:
    """The z-rows of all groups in the order in which they are predicted: always the group that is
    furthest behind. So no group holds more than a row of windows that cannot be fused yet."""
    rows = [
        (run.plan.settled(k - 1) / run.plan.grid[0], at, k)
        for at, run in enumerate(runs)
        for k in range(run.plan.rows)
    ]
    return [(runs[at], k) for _, at, k in sorted(rows)]


def read_panels(
    runs: Sequence[GroupRun], panels: Sequence[Panel], slices: int, stop: int
) -> list[SoftPredictions]:
    """The next `slices`, up to `stop` of the fusion grid: of each panel uint8
    ``[voice, organ of the panel, z, y, x]``."""
    rows, columns = runs[0].fusion_grid[1:]
    # Fresh zero pages cost nothing until they are written, and most never are.
    soft = [
        np.zeros((len(panel.members), len(panel.organs), slices, rows, columns), np.uint8)
        for panel in panels
    ]
    planes = {
        (member, organ): of_panel[voice, channel]
        for of_panel, panel in zip(soft, panels, strict=True)
        for voice, member in enumerate(panel.members)
        for channel, organ in enumerate(panel.organs)
    }
    for run in runs:
        run.read(stop, planes)
    return soft
