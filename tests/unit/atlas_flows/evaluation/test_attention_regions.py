"""Table 1: regions counted by hand, and what must hold for any attention map."""

from __future__ import annotations

import numpy as np
import pytest
from atlas_core.errors import GridMismatch
from atlas_core.records import Reading
from atlas_flows.evaluation import RegionRule
from atlas_flows.evaluation.attention_regions import Detection, count_regions, detect, tabulate
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

ANY = RegionRule(min_ml=0.0)


def _line(text: str) -> NDArray[np.bool_]:
    """``##..#`` as a volume of one row."""
    return np.array([letter == "#" for letter in text], np.bool_).reshape(-1, 1, 1)


def _detect(error: str, attended: str, rule: RegionRule = ANY, voxel_ml: float = 1.0) -> Detection:
    return detect(_line(error), _line(attended), voxel_ml, rule)


def test_regions_by_hand() -> None:
    #                 found    missed  found in one voxel
    counts = _detect("##..#...##...####.........",
                     ".#.......#......#....##.#.")  # fmt: skip
    assert (counts.error_regions, counts.errors_found) == (4, 3)
    assert (counts.attended_regions, counts.attended_right) == (5, 3)
    assert counts.sensitivity == pytest.approx(3 / 4)
    assert counts.precision == pytest.approx(3 / 5)
    assert (counts.error_ml, counts.error_ml_attended, counts.attended_ml) == (9.0, 3.0, 6.0)


def test_voxels_that_touch_at_a_corner_are_one_region() -> None:
    mask = np.zeros((4, 4, 4), np.bool_)
    mask[0, 0, 0] = mask[1, 1, 1] = True
    assert count_regions(mask, 1.0, ANY) == 1
    mask[3, 3, 3] = True
    assert count_regions(mask, 1.0, ANY) == 2


def test_small_regions_do_not_count_but_can_be_met() -> None:
    rule = RegionRule(min_ml=0.2)
    # Voxels of 0.1 ml: one voxel is too small, two are enough.
    counts = _detect("#...##", "#...#.", rule, voxel_ml=0.1)
    assert (counts.error_regions, counts.errors_found) == (1, 1)
    assert (counts.attended_regions, counts.precision) == (0, None)
    assert rule.least_voxels(0.1) == 2
    assert RegionRule(min_ml=0.3).least_voxels(0.1) == 3  # 0.3 / 0.1 is 2.9999999999999996
    assert RegionRule(min_ml=0.0).least_voxels(0.1) == 1


def test_a_share_asks_for_more_than_one_voxel() -> None:
    error, attended = "####....####", "#.......##.."
    assert _detect(error, attended).errors_found == 2
    assert _detect(error, attended, RegionRule(min_ml=0, share=0.5)).errors_found == 1
    assert _detect(error, attended, RegionRule(min_ml=0, share=1.0)).errors_found == 0
    assert _detect(error, error, RegionRule(min_ml=0, share=1.0)).errors_found == 2


def test_without_errors_or_attention_there_is_no_figure() -> None:
    nothing = _detect("....", "....")
    assert (nothing.sensitivity, nothing.precision) == (None, None)
    unneeded = _detect("....", "#.##")
    assert (unneeded.sensitivity, unneeded.precision) == (None, 0.0)
    blind = _detect("#.##", "....")
    assert (blind.sensitivity, blind.precision) == (0.0, None)


def test_arrays_of_two_grids_are_refused() -> None:
    with pytest.raises(GridMismatch):
        _detect("..", "...")


def test_attended_from_the_threshold_on() -> None:
    rule = RegionRule(threshold=0.5)
    assert rule.lowest_byte(Reading.PAPER) == 68  # 0.5 · 136
    assert rule.lowest_byte(Reading.RELEASED) == 1
    assert RegionRule(threshold=0.0).lowest_byte(Reading.PAPER) == 1
    assert RegionRule(threshold=0.2).lowest_byte(Reading.PAPER) == 28  # 27.2


masks = st.integers(0, 2**27 - 1).map(
    lambda bits: np.array([bits >> n & 1 for n in range(27)], np.bool_).reshape(3, 3, 3)
)
rules = st.builds(RegionRule, min_ml=st.floats(0, 5), share=st.floats(0, 1))


@given(masks, rules)
def test_perfect_attention_finds_everything_and_nothing_else(
    error: NDArray[np.bool_], rule: RegionRule
) -> None:
    counts = detect(error, error, 1.0, rule)
    assert counts.errors_found == counts.error_regions == counts.attended_right
    assert counts.sensitivity in (1.0, None)
    assert counts.error_ml == counts.error_ml_attended == counts.attended_ml == error.sum()


@given(masks, masks, rules)
def test_sides_that_swap_swap_the_figures(
    one: NDArray[np.bool_], other: NDArray[np.bool_], rule: RegionRule
) -> None:
    there, back = detect(one, other, 1.0, rule), detect(other, one, 1.0, rule)
    assert (there.sensitivity, there.precision) == (back.precision, back.sensitivity)


@given(masks, masks)
def test_more_attention_finds_no_less(
    error: NDArray[np.bool_], attended: NDArray[np.bool_]
) -> None:
    more = attended.copy()
    more[0] = True
    assert (
        detect(error, more, 1.0, ANY).errors_found >= detect(error, attended, 1.0, ANY).errors_found
    )


@given(masks, masks, st.permutations([0, 1, 2]))
def test_axes_do_not_matter(
    error: NDArray[np.bool_], attended: NDArray[np.bool_], axes: list[int]
) -> None:
    turned = detect(error.transpose(axes)[::-1], attended.transpose(axes)[::-1], 1.0, ANY)
    assert turned == detect(error, attended, 1.0, ANY)


def test_the_table_by_hand() -> None:
    found = [
        ("liver", _detect("#.#.", "#...")),  # 1/2, 1/1
        ("liver", _detect("#...", "#.##")),  # 1/1, 1/2
        ("liver", _detect("....", "....")),  # –, –
        ("spleen", _detect("#...", "..#.")),  # 0/1, 0/1
    ]
    table = tabulate(Reading.PAPER, ANY, found)
    liver, spleen = table.organs
    assert (liver.cases, spleen.cases) == (3, 1)
    assert liver.sensitivity == pytest.approx(2 / 3)
    assert liver.sensitivity_by_case.mean == pytest.approx(0.75)
    assert liver.sensitivity_by_case.std == pytest.approx(np.std([0.5, 1.0], ddof=1))
    assert liver.sensitivity_by_case.count == 2
    assert liver.precision == pytest.approx(2 / 3)
    assert (spleen.sensitivity, spleen.precision) == (0.0, 0.0)
    # Pooled: 2 of 4 regions; the paper's Avg.: the mean of 0.75 and 0, and of the deviations.
    assert table.overall.sensitivity == pytest.approx(2 / 4)
    assert table.overall.sensitivity_by_case.mean == pytest.approx(0.375)
    assert table.overall.sensitivity_by_case.std == pytest.approx(np.std([0.5, 1.0], ddof=1) / 2)


def test_cases_may_come_in_any_order_and_twice() -> None:
    found = [("liver", _detect("#.#.", "#...")), ("liver", _detect("#...", "#.##"))]
    table = tabulate(Reading.PAPER, ANY, found)
    assert tabulate(Reading.PAPER, ANY, found[::-1]) == table
    twice = tabulate(Reading.PAPER, ANY, found * 2).overall
    assert (twice.sensitivity, twice.precision) == (
        table.overall.sensitivity,
        table.overall.precision,
    )


def test_a_table_of_nothing() -> None:
    table = tabulate(Reading.RELEASED, ANY, [])
    assert table.organs == ()
    assert table.overall.sensitivity is None
    assert type(table).model_validate_json(table.model_dump_json()) == table
