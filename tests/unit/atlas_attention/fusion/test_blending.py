"""Blending of overlapping windows: order-free, exact where windows agree, bounded in memory."""

from __future__ import annotations

import numpy as np
import pytest
from atlas_attention.fusion import Window, WindowPlan
from atlas_attention.fusion.blending import Blender
from atlas_core.errors import InvalidInput
from numpy.typing import NDArray

PLAN = WindowPlan.over((29, 22, 26), (12, 10, 8), 0.5)


def answers(plan: WindowPlan, models: int, organs: int) -> dict[Window, NDArray[np.uint8]]:
    """Random predictions with whole rows of zeros, for every window."""
    rng = np.random.default_rng(7)
    given = {}
    for k in range(plan.rows):
        for window in plan.row(k):
            soft = rng.integers(0, 256, (models, organs, *plan.patch), dtype=np.uint8)
            soft[rng.random(soft.shape[:-1]) < 0.5] = 0
            given[window] = soft
    return given


def blend(
    plan: WindowPlan,
    given: dict[Window, NDArray[np.uint8]],
    *,
    shuffle: int | None = None,
    step: int = 1000,
    threads: int = 1,
) -> NDArray[np.uint8]:
    models, organs = next(iter(given.values())).shape[:2]
    blender = Blender(plan, models, organs, threads=threads)
    parts = []
    read = 0
    for k in range(plan.rows):
        if read < plan.settled(k - 1):
            parts.append(blender.read(plan.settled(k - 1)))
            read = plan.settled(k - 1)
        blender.open_row(k)
        jobs = [(w, m) for w in plan.row(k) if w in given for m in range(models)]
        if shuffle is not None:
            np.random.default_rng(shuffle).shuffle(jobs)  # type: ignore[arg-type]
        for window, model in jobs:
            blender.add(window, model, given[window][model])
        while read < plan.settled(k):
            stop = min(plan.settled(k), read + step)
            parts.append(blender.read(stop))
            read = stop
    if read < plan.settled(plan.rows):
        parts.append(blender.read(plan.settled(plan.rows)))
    return np.concatenate(parts, axis=2)


def blended_in_float(
    plan: WindowPlan, given: dict[Window, NDArray[np.uint8]]
) -> NDArray[np.float64]:
    """Σ share · v with unquantised Gaussian shares."""
    models, organs = next(iter(given.values())).shape[:2]
    total = np.zeros((models, organs, *plan.grid))
    for window, soft in given.items():
        z, y, x = (share[at] for share, at in zip(plan.shares, window.at, strict=True))
        share = z[:, None, None] * y[:, None] * x
        inside = tuple(
            slice(max(0, -s), min(p, n - s))
            for s, p, n in zip(window.start, plan.patch, plan.grid, strict=True)
        )
        place = tuple(
            slice(max(0, s), min(n, s + p))
            for s, p, n in zip(window.start, plan.patch, plan.grid, strict=True)
        )
        total[:, :, *place] += (share * soft)[:, :, *inside]
    return total


@pytest.mark.parametrize("overlap", [0.0, 0.25, 0.5, 0.75])
def test_is_the_gaussian_mean_up_to_quantised_weights(overlap: float) -> None:
    plan = WindowPlan.over((29, 22, 26), (12, 10, 8), overlap)
    given = answers(plan, 2, 2)
    apart = np.abs(blend(plan, given) - blended_in_float(plan, given))
    # Random windows disagree as much as they can; real ones differ by a fraction of that.
    assert apart.mean() < 2


def test_order_of_arrival_reading_step_and_threads_change_nothing() -> None:
    given = answers(PLAN, 2, 3)
    expected = blend(PLAN, given)
    assert (blend(PLAN, given, shuffle=1, threads=2) == expected).all()
    assert (blend(PLAN, given, shuffle=2, step=1) == expected).all()
    assert (blend(PLAN, given, step=5) == expected).all()


def test_windows_that_agree_give_exactly_their_value() -> None:
    """A function of the place alone comes back exactly, whatever the weights."""
    truth = np.random.default_rng(3).integers(0, 256, (1, 2, *PLAN.grid), dtype=np.uint8)
    given = {}
    for k in range(PLAN.rows):
        for window in PLAN.row(k):
            place = tuple(slice(s, s + p) for s, p in zip(window.start, PLAN.patch, strict=True))
            given[window] = truth[:, :, *place]
    assert (blend(PLAN, given) == truth).all()


def test_a_window_left_out_counts_as_zero() -> None:
    given = answers(PLAN, 1, 1)
    some = dict(list(given.items())[::2])
    zeros = {w: soft if w in some else np.zeros_like(soft) for w, soft in given.items()}
    assert (blend(PLAN, some) == blend(PLAN, zeros)).all()


def test_voxels_outside_all_windows_are_zero() -> None:
    """Windows over a box: slices before, after and beside it are zero, those inside unchanged."""
    box = ((14, 31), (3, 19), (9, 26))
    plan = WindowPlan.over((64, 22, 40), (12, 10, 8), 0.5, box)
    given = answers(plan, 2, 2)
    blended = blend(plan, given)
    assert blended.shape == (2, 2, 64, 22, 40)
    assert np.abs(blended - blended_in_float(plan, given))[:, :, 14:31, 3:19, 9:26].mean() < 2
    inside = np.zeros(plan.grid, bool)
    for window in given:
        inside[tuple(slice(s, s + p) for s, p in zip(window.start, plan.patch, strict=True))] = True
    assert not inside.all() and not blended[:, :, ~inside].any()
    assert (blend(plan, given, step=3, shuffle=1, threads=2) == blended).all()


def test_a_volume_smaller_than_the_window() -> None:
    plan = WindowPlan.over((5, 7, 30), (12, 10, 8), 0.5)
    given = answers(plan, 1, 2)
    blended = blend(plan, given)
    assert blended.shape == (1, 2, 5, 7, 30)
    assert np.abs(blended - blended_in_float(plan, given)).mean() < 2


def test_memory_is_that_of_one_window_row() -> None:
    held = {}
    for slices in (12, 100, 10_000):
        blender = Blender(WindowPlan.over((slices, 40, 40), (12, 10, 8), 0.5), 3, 9)
        held[slices] = sum(a.nbytes for a in vars(blender).values() if isinstance(a, np.ndarray))
    assert len(set(held.values())) == 1
    assert held[12] < 2.1 * 3 * 9 * 12 * 40 * 40


def test_refuses_an_answer_of_another_form() -> None:
    blender = Blender(PLAN, 1, 2)
    blender.open_row(0)
    window = next(PLAN.row(0))
    for soft in (np.zeros((3, 12, 10, 8), np.uint8), np.zeros((2, 12, 10, 8), np.float32)):
        with pytest.raises(InvalidInput, match="another form"):
            blender.add(window, 0, soft)
