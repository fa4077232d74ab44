"""Members that know different organs, against the definition in float64."""

from __future__ import annotations

from itertools import combinations, pairwise

import numpy as np
from atlas_attention.fusion import (
    ATTENTION_LEVELS,
    Fused,
    PanelFuser,
    SoftPredictions,
    fuse,
    open_fuser,
    panels,
)
from atlas_core.records import Reading
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from numpy.typing import NDArray
from scipy import ndimage

ROUNDING = 1e-9
"""Of float64: what equals a threshold does not exceed it."""

READINGS = st.sampled_from(list(Reading))
BYTES = st.one_of(st.integers(0, 255), st.sampled_from([0, 94, 127, 128, 255]))
SOFT = array_shapes(min_dims=5, max_dims=5, min_side=1, max_side=7).flatmap(
    lambda shape: arrays(np.uint8, shape, elements=BYTES, fill=st.sampled_from([0, 94, 255]))
)


@st.composite
def mixed_members(draw: st.DrawFn) -> tuple[SoftPredictions, list[set[int]]]:
    """Soft predictions ``[model, organ, z, y, x]``, and which organs each model knows: every organ
    is known to one at least, and every model knows one."""
    soft = draw(SOFT)
    models, organs = soft.shape[:2]
    known = [draw(st.sets(st.integers(0, organs - 1), min_size=1)) for _ in range(models)]
    for organ in range(organs):
        known[organ % models].add(organ)
    return soft, known


def fused_by_panels(
    soft: SoftPredictions, known: list[set[int]], reading: Reading, cuts: set[int] = frozenset()
) -> tuple[Fused, PanelFuser]:
    chosen = panels(known)
    fuser = PanelFuser(chosen, reading, open_fuser)
    edges = [0, *sorted(cut for cut in cuts if 0 < cut < soft.shape[2]), soft.shape[2]]
    parts = [
        fuser.push(
            [
                np.ascontiguousarray(soft[np.ix_(panel.members, panel.organs)][:, :, a:b])
                for panel in chosen
            ]
        )
        for a, b in pairwise(edges)
    ]
    return Fused.concatenated([*parts, fuser.finish()]), fuser


def opened(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    cube = np.ones((3, 3, 3), bool)
    eroded = ndimage.binary_erosion(mask, cube, iterations=2)
    return np.asarray(ndimage.binary_dilation(eroded, cube, iterations=2))


def by_definition(
    soft: SoftPredictions, known: list[set[int]], reading: Reading
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Attention (Eq. 4) and mean, ``[organ, z, y, x]``, in float64."""
    organs = soft.shape[1]
    voices = [[m for m, its in enumerate(known) if c in its] for c in range(organs)]
    p = [soft[voices[c], c] / 255.0 for c in range(organs)]
    mean = np.stack([of_organ.mean(axis=0) for of_organ in p])
    claims = np.stack([(of_organ > 0.5).any(axis=0) for of_organ in p])
    if reading is Reading.RELEASED:
        claims = mean > 0.5 + ROUNDING
    terms = []
    for of_organ in p:
        inconsistency = of_organ.std(axis=0)
        uncertainty = -(of_organ * np.log(np.where(of_organ > 0, of_organ, 1))).mean(axis=0)
        if reading is Reading.RELEASED:
            inconsistency = np.where(opened(inconsistency > 0.1 + ROUNDING), inconsistency, 0)
            uncertainty = np.where(opened(uncertainty > 0.05 + ROUNDING), uncertainty, 0)
        terms.append(inconsistency + uncertainty)
    attention = np.stack(terms) + (claims & (claims.sum(axis=0) > 1))
    if reading is Reading.OPENED:
        attention = ndimage.grey_opening(attention, size=(1, 3, 3, 3), mode="nearest")
    return attention, mean


@settings(deadline=None)  # the first example compiles
@given(mixed_members(), READINGS)
def test_it_is_what_the_definition_says(
    members: tuple[SoftPredictions, list[set[int]]], reading: Reading
) -> None:
    soft, known = members
    fused, fuser = fused_by_panels(soft, known, reading)
    attention, mean = by_definition(soft, known, reading)
    bound = 0.5 + (len(soft) / 2 + 1.01) / 256  # see `fusion`
    assert np.abs(fused.attention - ATTENTION_LEVELS * attention).max() <= bound
    assert np.abs(fused.mean - 255 * mean).max() <= 0.5 + 1e-9
    best = fused.mean.max(axis=0)
    first = fused.mean.argmax(axis=0) + 1
    if len(panels(known)) > 1:
        assert (fused.label == np.where(best >= 128, first, 0)).all()
    assert ((fused.label > 0) == (mean > 0.5 + ROUNDING).any(axis=0)).all()
    assert fuser.voices.tolist() == [sum(c in its for its in known) for c in range(len(mean))]


@settings(deadline=None)
@given(mixed_members(), READINGS)
def test_disagreement_is_over_the_pairs_that_know_the_organ(
    members: tuple[SoftPredictions, list[set[int]]], reading: Reading
) -> None:
    soft, known = members
    _, fuser = fused_by_panels(soft, known, reading)
    for organ, found in enumerate(fuser.disagreement()):
        p = [soft[m, organ] / 255.0 for m, its in enumerate(known) if organ in its]
        if len(p) > 1:
            dice = [_dice(a > 0.5, b > 0.5) for a, b in combinations(p, 2)]
        else:
            dice = [_dice((p[0] > 0.5).astype(float), p[0])]
        assert abs(found - (1 - np.mean(dice))) < 1e-9
        assert abs(fuser.mean_probability_sum()[organ] - np.mean(p, axis=0).sum()) < 1e-6


def _dice(a: NDArray[np.generic], b: NDArray[np.generic]) -> float:
    whole = float(a.sum()) + float(b.sum())
    return 1.0 if whole == 0 else 2 * float((a * b).sum()) / whole


@given(mixed_members(), READINGS, st.sets(st.integers(0, 7)))
def test_cuts_along_z_do_not_matter(
    members: tuple[SoftPredictions, list[set[int]]], reading: Reading, cuts: set[int]
) -> None:
    (whole, of_whole), (cut, of_cut) = (
        fused_by_panels(*members, reading, at) for at in (set[int](), cuts)
    )
    for name in ("attention", "mean", "label"):
        assert np.array_equal(getattr(cut, name), getattr(whole, name))
    assert np.array_equal(of_cut.disagreement(), of_whole.disagreement())


@given(SOFT, READINGS)
def test_members_that_know_all_organs_are_fused_as_ever(
    soft: SoftPredictions, reading: Reading
) -> None:
    fused, _ = fused_by_panels(soft, [set(range(soft.shape[1]))] * len(soft), reading)
    expected = fuse(soft, reading)
    for name in ("attention", "mean", "label"):
        assert np.array_equal(getattr(fused, name), getattr(expected, name))


@given(mixed_members(), READINGS)
def test_overlap_of_panels_is_that_of_one_pass(
    members: tuple[SoftPredictions, list[set[int]]], reading: Reading
) -> None:
    """Cut into panels of one organ each, an ensemble in which all know all gives the same bytes."""
    soft, _ = members
    everybody = [set(range(soft.shape[1]))] * len(soft)
    parts = [panel for organ in range(soft.shape[1]) for panel in panels([{organ}] * len(soft))]
    fuser = PanelFuser(tuple(parts), reading, open_fuser)
    first = fuser.push([np.ascontiguousarray(soft[:, [p.organs[0]]]) for p in parts])
    fused = Fused.concatenated([first, fuser.finish()])
    expected, _ = fused_by_panels(soft, everybody, reading)
    assert np.array_equal(fused.attention, expected.attention)
    assert np.array_equal(fused.mean, expected.mean)
