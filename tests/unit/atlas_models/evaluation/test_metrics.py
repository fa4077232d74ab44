"""Dice and surface Dice against cases that can be worked out by hand; the test against tables."""

from __future__ import annotations

import csv
import io
import math

import numpy as np
import pytest
from atlas_core.catalog import CaseAgreement, OrganAgreement
from atlas_core.errors import GridMismatch, InvalidInput
from atlas_models.evaluation import as_csv, as_json, compare, organ_agreement, summarise
from atlas_models.evaluation.metrics import signed_rank, surface_dice
from hypothesis import given, settings
from hypothesis import strategies as st


def cube(shift: int = 0, size: int = 24) -> np.ndarray:
    mask = np.zeros((size,) * 3, bool)
    mask[5 + shift : 15 + shift, 5:15, 5:15] = True
    return mask


def test_equal_masks_agree_fully() -> None:
    row = organ_agreement("liver", cube(), cube(), (1.5, 0.7, 2.0))
    assert (row.dice, row.nsd) == (1.0, 1.0)


def test_what_neither_sees_is_no_agreement_and_what_one_sees_is_none() -> None:
    nothing = np.zeros_like(cube())
    row = organ_agreement("liver", nothing, nothing, (1, 1, 1))
    assert (row.dice, row.nsd) == (None, None)
    for pair in ((cube(), nothing), (nothing, cube())):
        row = organ_agreement("liver", *pair, (1, 1, 1))
        assert (row.dice, row.nsd) == (0.0, 0.0)


FACE, EDGE, CORNER = 1.0, math.sqrt(2) / 2, math.sqrt(3) / 8
"""Areas (mm²) of the surface around one lattice point between voxels of 1 mm."""


def test_a_shifted_cube_by_hand() -> None:
    """A cube of 10 voxels shifted by 2 mm along one axis, counted point by point.

    Its surface passes through 9 x 9 points inside each of 6 faces, 9 on each of 12 edges and 8
    corners. Of these, the face left behind lies 2 mm from the other cube; of the face ahead, which
    lies inside the other, all but the outermost ring lie more than 1 mm below its sides.
    """
    row = organ_agreement("liver", cube(), cube(2), (1.0, 1.0, 1.0))
    assert row.dice == pytest.approx(0.8)
    surface = 6 * 81 * FACE + 12 * 9 * EDGE + 8 * CORNER
    behind = 81 * FACE + 4 * 9 * EDGE + 4 * CORNER
    ahead = 7 * 7 * FACE
    assert row.nsd == pytest.approx((surface - behind - ahead) / surface, abs=1e-5)
    # All of it lies within 2 mm.
    assert surface_dice(cube(), cube(2), (1.0, 1.0, 1.0), 2.0) == pytest.approx(1.0)


def test_tolerance_is_in_millimetres_not_voxels() -> None:
    """One voxel apart: within 1 mm on a grid of 0.9 mm, beyond on one of 3 mm."""
    assert surface_dice(cube(), cube(1), (0.9, 0.9, 0.9)) == pytest.approx(1.0)
    far = surface_dice(cube(), cube(1), (3.0, 1.0, 1.0))
    assert far < 0.9
    # Only the shifted axis counts: 3 mm along another one changes areas, not distances.
    assert surface_dice(cube(), cube(1), (1.0, 3.0, 1.0)) == pytest.approx(1.0)


def test_a_plate_and_a_block_by_hand() -> None:
    """A plate of 20 x 20 x 1 voxels in a block of 20 x 20 x 6: all of the plate lies within 1 mm of
    the block; of the block, its bottom and its sides up to 1 mm above the plate."""
    plate, block = np.zeros((2, 30, 30, 30), bool)
    plate[5:25, 5:25, 10:11] = True
    block[5:25, 5:25, 10:16] = True
    cap = 19 * 19 * FACE + 4 * 19 * EDGE + 4 * CORNER
    layer_of_sides = 4 * 19 * FACE + 4 * EDGE
    near = 2 * cap + (cap + 2 * layer_of_sides)
    value = surface_dice(plate, block, (1.0, 1.0, 1.0))
    assert value == pytest.approx(near / (2 * cap + 2 * cap + 5 * layer_of_sides), abs=1e-5)


def test_a_surface_at_the_edge_of_the_volume_is_one() -> None:
    full = np.ones((8, 8, 8), bool)
    part = full.copy()
    part[4:] = False
    inside, inside_part = np.pad(full, 4), np.pad(part, 4)
    assert surface_dice(full, part, (1, 1, 1)) == surface_dice(inside, inside_part, (1, 1, 1))


@settings(deadline=None, max_examples=25)
@given(seed=st.integers(0, 10_000), axis=st.integers(0, 2))
def test_agreement_is_symmetric_and_mirrors(seed: int, axis: int) -> None:
    rng = np.random.default_rng(seed)
    a, b = rng.random((2, 6, 7, 8)) > 0.6
    spacing = (1.0, 0.8, 2.5)
    there, back = organ_agreement("liver", a, b, spacing), organ_agreement("liver", b, a, spacing)
    assert there.dice == back.dice
    assert there.nsd == pytest.approx(back.nsd)
    mirrored = organ_agreement("liver", np.flip(a, axis), np.flip(b, axis), spacing)
    assert mirrored.nsd == pytest.approx(there.nsd)


def test_masks_of_two_grids_are_refused() -> None:
    with pytest.raises(GridMismatch, match="liver"):
        organ_agreement("liver", cube(), cube()[:-1], (1, 1, 1))


def case(case_id: str, **dice: float | None) -> CaseAgreement:
    rows = (
        OrganAgreement(organ=o, dice=d, nsd=None if d is None else d / 2) for o, d in dice.items()
    )
    return CaseAgreement(case_id=case_id, organs=tuple(rows))


def test_a_summary_by_hand() -> None:
    cases = [case("a", liver=0.9, spleen=None), case("b", liver=0.7, spleen=0.5)]
    summary = summarise(cases)
    liver, spleen = summary.organs["liver"]["dice"], summary.organs["spleen"]["dice"]
    assert (liver.count, liver.mean) == (2, pytest.approx(0.8))
    assert liver.std == pytest.approx(math.sqrt(0.02))
    assert (spleen.count, spleen.mean, spleen.std) == (1, 0.5, 0.0)
    # Over organs; over cases of each case's mean it would be (0.9 + 0.6) / 2.
    assert summary.overall["dice"].mean == pytest.approx((0.8 + 0.5) / 2)
    assert summary.overall["dice"].std == pytest.approx((math.sqrt(0.02) + 0.0) / 2)
    assert summary.overall["dice"].count == 2
    assert summary.mean_dice == summary.overall["dice"].mean
    assert str(liver) == "80.0 ± 14.1"
    told = as_json(summary)
    assert told["organs"]["liver"]["nsd"]["mean"] == pytest.approx(0.4)
    rows = list(csv.DictReader(io.StringIO(as_csv({"unet@0": cases}))))
    assert len(rows) == 4
    assert rows[1] == {
        "model": "unet@0", "case_id": "a", "organ": "spleen", "dice": "", "nsd": "",
    }  # fmt: skip


def test_no_organ_anywhere_has_no_mean() -> None:
    with pytest.raises(InvalidInput, match="no case holds an organ"):
        summarise([case("a", liver=None)]).mean_dice  # noqa: B018


def test_signed_ranks_by_the_table() -> None:
    """Six pairs, all better: W = 0, of 2**6 signs two are as extreme: p = 2/64. Critical values of
    the published table: five pairs can never reach 0.05, six just do."""
    first = [0.50, 0.55, 0.60, 0.62, 0.70, 0.71]
    second = [0.51, 0.57, 0.63, 0.66, 0.75, 0.77]
    six = signed_rank(first, second)
    assert six.p_value == pytest.approx(2 / 64)
    assert (six.mark, six.pairs) == ("*", 6)
    five = signed_rank(first[:5], second[:5])
    assert five.p_value == pytest.approx(2 / 32)
    assert five.mark == "ns"
    eleven = signed_rank(list(range(11)), [i + 1.0 + i / 100 for i in range(11)])
    assert eleven.p_value == pytest.approx(2 / 2**11)
    assert eleven.mark == "***"
    assert signed_rank([0.1, 0.2], [0.1, 0.2]).p_value is None


def test_versions_are_compared_on_the_cases_of_both() -> None:
    first = [case(f"c{n}", liver=0.5 + n / 100, spleen=0.4) for n in range(8)]
    second = [case(f"c{n}", liver=0.52 + n / 90, spleen=0.4) for n in range(1, 9)]
    result = compare(first, second)
    assert result["dice"]["liver"].pairs == 7
    assert result["dice"]["liver"].difference is not None
    assert result["dice"]["liver"].difference > 0
    assert result["dice"]["liver"].p_value == pytest.approx(2 / 2**7)
    assert result["dice"]["spleen"].p_value is None
    assert result["nsd"]["mean"].pairs == 7
    both = [summarise(cases).mean_dice for cases in (first[1:], second[:-1])]
    assert result["dice"]["mean"].difference == pytest.approx(both[1] - both[0])
    with pytest.raises(InvalidInput, match="same cases"):
        compare(first, [case("other", liver=0.5)])
