"""An abdominal ensemble on a CT of a whole body, 512 × 512 × 900 voxels, with locating and without.

Two members of 96³ at 1.5 mm and one of 64³ at 3 mm, which looks first. They are made up in the
process: they tell nine organs by their density in the CT, so what they answer does not depend on
the window, as networks' answers hardly should. What a network costs is measured: seconds a voxel of
one window of a full-size network on the CPU of this machine, in the same run. ``speedup`` is
processor time and networks together, without locating against with; ``dice`` the lowest of the nine
organs' between the two pseudo labels. Triton takes no part.
"""

from __future__ import annotations

import argparse
import time
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

import numpy as np
from atlas_attention.scoring import attend
from atlas_attention.scoring.locating import cheapest
from atlas_core.geometry import VolumeGeometry
from atlas_core.model_spec import ModelSpec
from atlas_core.organs import read_scheme
from bench.measurement import GIB, in_fresh_process, machine, report, say
from bench.whole_body import PATCH, network_seconds
from numpy.typing import NDArray

SLICES = 900
SPACING_MM = (0.8, 0.8, 1.25)
ABDOMEN = (400, 640)
"""Slices with organs: 300 mm."""

STEP_HU = 100
LOWEST_HU = -1024


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument(
        "--window-s", type=float, default=None,
        help="seconds of a network for a window of 128³; default: measured on this CPU",
    )  # fmt: skip
    window_s = parser.parse_args().window_s
    described = machine("numpy", "numba")
    if window_s is None:
        say("a window through one network")
        window_s, _ = in_fresh_process(network_seconds)
    runs = {}
    for locating in (False, True):
        say("with locating" if locating else "without locating")
        run, peak = in_fresh_process(_run, locating)
        runs[locating] = run, peak
    (plain, plain_peak), (located, located_peak) = runs[False], runs[True]
    voxel_s = window_s / np.prod(PATCH)
    cost = {key: run.cpu_s + run.predicted_voxels * voxel_s for key, (run, _) in runs.items()}
    report(
        "locate",
        speedup=round(cost[False] / cost[True], 2),
        dice=round(_lowest_dice(plain.label, located.label), 5),
        left_out=round(located.left_out, 3),
        peak_gib=round(max(plain_peak, located_peak) / GIB, 3),
        window_s=round(window_s, 3),
        without=plain.described(),
        with_locating=located.described(),
        machine=described,
    )


@dataclass
class _Run:
    cpu_s: float
    windows: int
    predicted_voxels: int
    left_out: float
    label: NDArray[np.uint8]

    def described(self) -> dict[str, Any]:
        return {
            "cpu_s": round(self.cpu_s, 2),
            "windows": self.windows,
            "predicted_voxels": self.predicted_voxels,
        }


class _WholeBody:
    """An elliptic cylinder of tissue with nine organs in its middle; slices are made when read."""

    def __init__(self) -> None:
        shape = (512, 512, SLICES)
        self.geometry = VolumeGeometry.from_array(shape, np.diag([*SPACING_MM, 1.0]))
        self.canonical = self.geometry
        y, x = np.ogrid[-1:1:512j, -1:1:512j]
        self._slice = np.where((x / 0.9) ** 2 + (y / 0.65) ** 2 < 1, 0.0, -1000.0)
        random = np.random.default_rng(3)
        cells = [(k, i) for k in range(3) for i in range(3)]
        self._organs = [
            (
                np.array([ABDOMEN[0] + 80 * k + 40, random.uniform(200, 310), 140 + 116 * i]),
                random.uniform(0.7, 1.0, 3) * (36, 70, 50),
            )
            for k, i in cells
        ]

    def read(self, start: int, stop: int) -> NDArray[np.float32]:
        block = np.repeat(self._slice[None], stop - start, axis=0).astype(np.float32)
        for number, (centre, radii) in enumerate(self._organs):
            z, y, x = (
                (np.arange(first, last, dtype=np.float32) - at) / radius
                for first, last, at, radius in zip(
                    (start, 0, 0), (stop, 512, 512), centre, radii, strict=True
                )
            )
            if np.abs(z).min() < 1:
                inside = z[:, None, None] ** 2 + y[:, None] ** 2 + x**2 < 1
                block[inside] = STEP_HU * (number + 1)
        return block


class _ByDensity:
    """Every organ where the density is about its own; counts what it is asked."""

    def __init__(self) -> None:
        hu = np.arange(LOWEST_HU, 2048)
        far = np.abs(hu[None] - STEP_HU * np.arange(1, 10)[:, None])
        self._soft = np.rint(255 / (1 + np.exp((far - 35) / 5.0))).astype(np.uint8)
        self.cpu_s = 0.0
        self.voxels = 0

    def submit(self, spec: ModelSpec, window: NDArray[np.float32]) -> Future[NDArray[np.uint8]]:
        used = time.thread_time()
        index = np.rint(window).astype(np.int16) - LOWEST_HU
        answer: Future[NDArray[np.uint8]] = Future()
        answer.set_result(self._soft[:, index])
        self.voxels += window.size
        self.cpu_s += time.thread_time() - used
        return answer


def _members() -> tuple[ModelSpec, ...]:
    return tuple(
        ModelSpec(
            name=name,
            version=0,
            architecture="made_up",
            organs=read_scheme("abdomen_atlas_1_0").names,
            spacing_mm=(mm, mm, mm),
            patch=(voxels, voxels, voxels),
            hu_window=(-1000.0, 1000.0),
            sha256="0" * 64,
        )
        for name, mm, voxels in (("fine", 1.5, 96), ("other", 1.5, 96), ("coarse", 3.0, 64))
    )


def _run(locating: bool) -> _Run:
    predictor, specs = _ByDensity(), _members()
    label = np.zeros((512, 512, SLICES), np.uint8, order="F")
    used = time.process_time()
    run = attend(
        _WholeBody(), specs, predictor, scheme=read_scheme("abdomen_atlas_1_0"),
        locator=cheapest(specs) if locating else None,
    )  # fmt: skip
    for slab in run:
        label[:, :, slab.start : slab.stop] = slab.label
    cpu_s = time.process_time() - used - predictor.cpu_s
    summary = run.summary
    return _Run(cpu_s, summary.windows, predictor.voxels, summary.left_out, label)


def _lowest_dice(one: NDArray[np.uint8], other: NDArray[np.uint8]) -> float:
    labels = range(1, 10)
    both = np.bincount(one[one == other], minlength=10)
    sums = np.bincount(one.ravel("K"), minlength=10) + np.bincount(other.ravel("K"), minlength=10)
    return min(2 * float(both[n]) / float(sums[n]) for n in labels)


if __name__ == "__main__":
    main()
