"""What a histogram says about Hounsfield units, and which copies of a scan share a fingerprint."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from atlas_core.importing.plausibility import VoxelSurvey
from numpy.typing import NDArray


def body(seed: int = 0) -> NDArray[np.int32]:
    """Air, fat, soft tissue and bone, with noise."""
    hu = np.full((40, 40, 20), -1000.0)
    hu[6:34, 6:34] = -100
    hu[8:32, 8:32] = 50
    hu[18:22, 10:13] = 700
    noise = np.random.default_rng(seed).normal(0, 12, hu.shape)
    return np.asarray(np.maximum(np.rint(hu + noise), -1024), np.int32)


def survey(voxels: NDArray[Any]) -> VoxelSurvey:
    found = VoxelSurvey()
    for piece in np.array_split(voxels.reshape(-1, order="F"), 3):
        found.add(piece)
    return found


def padded(value: int, voxels: NDArray[Any]) -> NDArray[Any]:
    """Outside a round field of view."""
    i, j = np.indices((40, 40)) - 19.5
    return np.where((i**2 + j**2 > 19**2)[..., None], value, voxels)


SOUND: dict[str, NDArray[Any]] = {
    "plain": body(),
    "padding": padded(-3024, body()),
    "tenths": body().astype(np.float32) + np.float32(0.1),
    "metal": np.where(np.arange(20) == 3, np.where(body() > 650, 30_000, body()), body()),
    "body cut out": np.where(body() < -500, -1024, body()),
    "clipped to bone": body().clip(-1000, 1000),
}


@pytest.mark.parametrize("voxels", SOUND.values(), ids=SOUND)
def test_hounsfield_units_are_not_doubted(voxels: NDArray[Any]) -> None:
    assert survey(voxels).hounsfield_doubt() is None


WRONG: dict[str, tuple[NDArray[Any], str]] = {
    "no intercept": (body() + 1024, "never added"),
    "behind padding": (padded(-2000, body() + 1024), "never added.*padding of -2000"),
    "behind padding that could be air": (padded(-1024, body() + 1024), "never added"),
    "behind two paddings": (padded(-2000, padded(-3024, body() + 1024).clip(-3024)), "never added"),
    "intercept twice": (body() - 1024, "added twice"),
    "slope": (body() * 1e20, "slope is wrong"),
    "without sign": (body().astype(np.uint16), "without a sign"),
    "to one": ((body() + 1024) / np.float32(2048), "normalised"),
    "standardised": ((body() - body().mean()) / body().std(), "normalised"),
    "window": (body().clip(-160, 240), "values below -160 were cut off"),
    "8 bits": (((body().clip(-160, 240) + 160) * 255 // 400), "8 bits"),
    "padding alone below": (
        padded(-3024, np.maximum(body(), -90)),
        "values below -90 were cut off",
    ),
    "no tissue": (np.full((9, 9, 9), -1000), "nothing is as dense"),
}


@pytest.mark.parametrize(("voxels", "why"), WRONG.values(), ids=WRONG)
def test_what_is_wrong_is_named(voxels: NDArray[Any], why: str) -> None:
    doubt = survey(voxels).hounsfield_doubt()
    assert doubt is not None
    assert re.search(why, doubt), doubt


def test_what_was_cut_off_is_remarked() -> None:
    assert survey(body()).remarks() == []
    assert "above 200 HU" in survey(body().clip(None, 200)).remarks()[0]
    assert "below -300 HU" in survey(body().clip(-300, None)).remarks()[0]


SAME: dict[str, Callable[[NDArray[Any]], NDArray[Any]]] = {
    "axes": lambda v: v.transpose(2, 0, 1)[::-1],
    "clipped": lambda v: v.clip(-1000, 1000),
    "window": lambda v: v.clip(-160, 240),
    "floats": lambda v: v + np.float32(0.004),
    "padded otherwise": lambda v: np.where(v < -900, -3024, v),
}


@pytest.mark.parametrize("copy", SAME.values(), ids=SAME)
def test_copies_of_a_scan_share_a_fingerprint(copy: Callable[[NDArray[Any]], NDArray[Any]]) -> None:
    voxels = body()
    mark = survey(voxels).fingerprint(voxels.shape)
    assert mark is not None
    assert survey(copy(voxels)).fingerprint(copy(voxels).shape) == mark
    assert survey(body(1)).fingerprint(voxels.shape) != mark


def test_what_is_too_plain_has_none() -> None:
    assert survey(np.where(body() > 0, 50, -1000)).fingerprint((40, 40, 20)) is None
