"""A whole body of 117 structures, and five members that know some of them each, as those of
TotalSegmentator do: their answers, and what a network of theirs costs.

What a window shows is not looked at: windows come in the order of their plan, so each member counts
them, and answers what it would see there.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from atlas_attention.fusion import Box, Window, WindowPlan
from atlas_core.model_spec import ModelSpec
from atlas_core.organs import OrganScheme, read_scheme
from numpy.typing import NDArray

PER_MEMBER = (24, 26, 18, 23, 26)
"""Classes of TotalSegmentator's five networks (v2): organs, vertebrae, heart and vessels, muscles,
ribs."""

SPACING_MM = (1.5, 1.5, 1.5)
PATCH = (128, 128, 128)

CELLS = (13, 3, 3)
"""Structures lie in cells of the body, one each (z, y, x)."""

EDGE = 0.12
"""Width of the uncertain border, as a share of a structure's radius: about three voxels."""


def scheme() -> OrganScheme:
    """All 117 structures."""
    return read_scheme("totalsegmentator_v2")


def members() -> tuple[ModelSpec, ...]:
    """Five members on one grid, each with organs of its own."""
    names = scheme().names
    edges = np.cumsum((0, *PER_MEMBER)).tolist()
    return tuple(
        ModelSpec(
            name=f"member_{at}",
            version=0,
            architecture="nnunet",
            organs=names[first:last],
            spacing_mm=SPACING_MM,
            patch=PATCH,
            hu_window=(-2000.0, 1000.0),  # no window is all air: members count windows
            sha256=f"{at:064x}",
        )
        for at, (first, last) in enumerate(pairwise(edges))
    )


@dataclass(frozen=True)
class Structure:
    """An ellipsoid in voxels of the members' grid (z, y, x)."""

    centre: NDArray[np.float32]
    radii: NDArray[np.float32]

    @classmethod
    def in_cell(cls, number: int, body: Box) -> Structure:
        """Structure `number` of the body, touching its neighbours here and there."""
        random = np.random.default_rng(number)
        cell = np.array(np.unravel_index(number, CELLS))
        size = np.array([stop - start for start, stop in body]) / CELLS
        start = np.array([start for start, _ in body])
        centre = start + (cell + 0.5 + random.uniform(-0.1, 0.1, 3)) * size
        radii = random.uniform(0.3, 0.55, 3) * size
        return cls(centre.astype(np.float32), radii.astype(np.float32))


class WaitingMembers:
    """Answers of all members, each ready when one network after the other would have given it.

    Args:
        plan: the windows of the members' grid.
        body: where the structures lie on it.
        window_s: what a network needs for a window; 0: answers come at once.
    """

    def __init__(self, plan: WindowPlan, body: Box, window_s: float = 0.0) -> None:
        self._windows = [window for k in range(plan.rows) for window in plan.row(k)]
        self._structures = [Structure.in_cell(n, body) for n in range(len(scheme()))]
        self._numbers = {name: n for n, name in enumerate(scheme().names)}
        self._window_s = window_s
        self._asked: dict[str, int] = {}
        self._device = threading.Lock()
        self._pool = ThreadPoolExecutor(len(PER_MEMBER))
        noise = np.random.default_rng(0).normal(0.0, 0.6, PATCH[::-1])
        self._noise = noise.astype(np.float32)
        self.made_cpu_s = 0.0
        """Processor time of making answers up: no part of what is measured."""

    def submit(self, spec: ModelSpec, window: NDArray[np.float32]) -> Future[NDArray[np.uint8]]:
        """See `scoring.Predictor`."""
        at = self._asked.get(spec.name, 0)
        self._asked[spec.name] = at + 1
        return self._pool.submit(self._answer, spec.organs, self._windows[at])

    def _answer(self, organs: Sequence[str], window: Window) -> NDArray[np.uint8]:
        with self._device:
            began, used = time.perf_counter(), time.thread_time()
            soft = np.zeros((len(organs), *PATCH[::-1]), np.uint8)
            for channel, name in enumerate(organs):
                self._draw(self._structures[self._numbers[name]], window, soft[channel])
            self.made_cpu_s += time.thread_time() - used
            time.sleep(max(0.0, self._window_s - (time.perf_counter() - began)))
        return soft

    def _draw(self, structure: Structure, window: Window, soft: NDArray[np.uint8]) -> None:
        reach = structure.radii * (1 + 6 * EDGE)
        centre = structure.centre - np.array(window.start, np.float32)
        low = np.maximum(0, np.floor(centre - reach)).astype(int)
        high = np.minimum(PATCH[::-1], np.ceil(centre + reach) + 1).astype(int)
        if (low >= high).any():
            return
        box = tuple(map(slice, low, high))
        far = np.zeros(tuple(high - low), np.float32)
        for axis in range(3):
            at = np.arange(low[axis], high[axis], dtype=np.float32) - centre[axis]
            share = at / structure.radii[axis]
            far += np.expand_dims(share * share, tuple(a for a in range(3) if a != axis))
        logit = (1 - np.sqrt(far)) / (EDGE / 4) + self._noise[box]
        np.clip(logit, -12, 12, out=logit)
        soft[box] = np.rint(255 / (1 + np.exp(-logit)))


def network_seconds() -> float:
    """Seconds of one window through a network of TotalSegmentator's plan (nnU-Net, six stages of 32
    to 320 channels, 128³) on the CPU of this machine."""
    import torch
    from monai.networks.nets import DynUNet

    network = DynUNet(
        3, 1, max(PER_MEMBER) + 1,
        kernel_size=[3] * 6, strides=[1, *[2] * 5], upsample_kernel_size=[2] * 5,
        filters=[32, 64, 128, 256, 320, 320],
    ).eval()  # fmt: skip
    window = torch.zeros(1, 1, *PATCH)
    with torch.inference_mode():
        network(window[..., :64, :64, :64])
        began = time.perf_counter()
        network(window)
        return time.perf_counter() - began
