"""Fig. 4, Table 5, Fig. 8, §3.3 and §5 worked out by hand, and their laws."""

from __future__ import annotations

import numpy as np
import pytest
from atlas_core.catalog import CaseAgreement, OrganAgreement
from atlas_core.errors import InvalidInput
from atlas_core.review import Throughput
from atlas_flows.evaluation import LabelKind, false_positive_rates, measure_error_found
from atlas_flows.evaluation.efficiency import MEASURED_MINUTES, efficiency, recorded_work
from atlas_flows.evaluation.error_found import SHARES, ErrorOfCase
from atlas_flows.evaluation.false_positives import FalseRegions
from atlas_flows.evaluation.label_quality import MeasuredIteration, iteration_table
from atlas_flows.evaluation.rater_agreement import PairDice, dice_matrix, pair_dice

# --- Fig. 4 ---------------------------------------------------------------------------------------


def _cases(errors: list[float], attention: list[float] | None = None) -> list[ErrorOfCase]:
    sizes = attention or [float(len(errors) - n) for n in range(len(errors))]
    return [
        ErrorOfCase(case_id=f"c{n:03d}", attention_ml=size, wrong_ml=error, dice_error=error / 100)
        for n, (error, size) in enumerate(zip(errors, sizes, strict=True))
    ]


def test_the_error_in_the_top_by_hand() -> None:
    # 20 cases; the first of the list holds 40 of 59 ml, the worst 40.
    found = measure_error_found(_cases([40.0] + [1.0] * 19))
    top = found.top()
    assert (top.cases, found.total_wrong_ml) == (1, 59.0)
    assert top.found == top.at_best == pytest.approx(40 / 59)
    assert top.by_chance == pytest.approx(1 / 20)
    # One draw in twenty is that case: the upper end of 95 % is it, the lower one is not.
    assert top.chance_low == pytest.approx(1 / 59)
    assert top.chance_high == pytest.approx(40 / 59)
    assert top.as_good_by_chance == pytest.approx(1 / 20, abs=0.02)
    assert found.top(by="dice").found == pytest.approx(40 / 59)
    assert [point.share for point in found.by_volume] == list(SHARES)
    assert found.top(0.10).found == pytest.approx(41 / 59)


def test_a_list_that_is_upside_down_finds_the_least() -> None:
    errors = [float(n) for n in range(40)]
    best = measure_error_found(_cases(errors, attention=errors))
    worst = measure_error_found(_cases(errors, attention=[-e + 40 for e in errors]))
    for good, bad in zip(best.by_volume, worst.by_volume, strict=True):
        assert good.found == pytest.approx(good.at_best)
        assert bad.found <= bad.chance_low <= bad.by_chance <= bad.chance_high <= good.found
        assert good.as_good_by_chance < 0.05 < bad.as_good_by_chance


def test_where_all_cases_are_equally_wrong_no_list_is_better() -> None:
    for point in measure_error_found(_cases([3.0] * 30)).by_volume:
        assert point.found == pytest.approx(point.by_chance)
        assert point.chance_low == pytest.approx(point.chance_high)
        assert point.as_good_by_chance == 1.0


def test_where_nothing_is_wrong_there_is_nothing_to_find() -> None:
    top = measure_error_found(_cases([0.0] * 5)).top()
    assert (top.found, top.by_chance, top.chance_high, top.at_best) == (0.0, 0.0, 0.0, 0.0)


def test_the_order_of_the_cases_does_not_matter() -> None:
    cases = _cases([float(n % 7) for n in range(50)])
    assert measure_error_found(cases) == measure_error_found(cases[::-1])


def test_a_share_that_is_not_on_the_curve_is_refused() -> None:
    with pytest.raises(InvalidInput, match="no such share"):
        measure_error_found(_cases([1.0])).top(0.5)
    with pytest.raises(InvalidInput, match="no case"):
        measure_error_found([])


# --- Table 5 --------------------------------------------------------------------------------------


def _iteration(t: int, dice: dict[str, float | None]) -> MeasuredIteration:
    rows = [
        CaseAgreement(case_id=name, organs=(OrganAgreement(organ="liver", dice=value, nsd=value),))
        for name, value in dice.items()
    ]
    return MeasuredIteration(t=t, title=f"M{t}", cases=tuple(rows))


def test_iterations_over_their_common_cases() -> None:
    before = {f"c{n:02d}": 0.5 + n / 100 for n in range(10)}
    after = {name: value + 0.1 + n / 1000 for n, (name, value) in enumerate(before.items())}
    table = iteration_table(
        LabelKind.PSEUDO,
        [_iteration(0, before | {"gone": 0.0}), _iteration(1, after), _iteration(2, dict(after))],
    )
    assert table.cases == 10
    (liver,) = table.organs
    first, second, third = liver.dice
    assert first.spread.mean == pytest.approx(np.mean(list(before.values())))
    assert first.spread.std == pytest.approx(np.std(list(before.values()), ddof=1))
    assert first.change is None
    assert second.change is not None
    assert second.change.difference == pytest.approx(0.1045)
    # Ten pairs that all rise: exactly 2 / 2^10.
    assert second.change.p_value == pytest.approx(2 / 2**10)
    assert second.text.endswith("**")
    assert third.change is not None
    assert third.change.p_value is None
    assert third.change_from_start == second.change
    assert table.mean_dice[1] == pytest.approx(np.mean(list(after.values())))


def test_an_organ_that_nobody_has_counts_nowhere() -> None:
    table = iteration_table(LabelKind.PSEUDO, [_iteration(0, {"a": None, "b": 0.5})])
    (figure,) = table.organs[0].dice
    assert (figure.spread.count, figure.spread.mean) == (1, 0.5)
    assert table.mean_dice == (0.5,)


def test_iterations_without_a_common_case() -> None:
    table = iteration_table(
        LabelKind.PSEUDO, [_iteration(0, {"a": 1.0}), _iteration(1, {"b": 1.0})]
    )
    assert (table.cases, table.mean_dice) == (0, (None, None))


# --- Fig. 8 ---------------------------------------------------------------------------------------


def test_pairs_of_masks_by_hand() -> None:
    a = np.array([1, 1, 0, 0], bool)
    b = np.array([0, 1, 1, 0], bool)
    empty = np.zeros(4, bool)
    found = {
        (pair.one, pair.other): pair.dice
        for pair in pair_dice("c", "liver", {"a": a, "b": b, "none": empty, "nil": empty})
    }
    assert found[("a", "b")] == pytest.approx(0.5)
    assert found[("a", "none")] == 0.0
    assert ("none", "nil") not in found
    assert all(one != other for one, other in found)


def test_the_matrix_is_symmetric_and_means_are_over_organs() -> None:
    pairs = [
        PairDice(case_id=case, organ=organ, one=one, other=other, dice=dice)
        for case, organ, one, other, dice in (
            ("1", "liver", "a", "b", 0.8),
            ("2", "liver", "b", "a", 0.6),
            ("1", "spleen", "a", "b", 0.1),
            ("1", "liver", "a", "t", 1.0),
        )
    ]
    matrix = dice_matrix(["a", "b", "t"], pairs)
    assert matrix.value("a", "b", "liver") == pytest.approx(0.7)
    assert matrix.value("b", "a") == pytest.approx((0.7 + 0.1) / 2)
    assert matrix.value("b", "t") is None
    assert matrix.value("a", "t", "spleen") is None
    assert (matrix.cases, matrix.organs) == (2, ("liver", "spleen"))
    assert dice_matrix(["a", "b", "t"], pairs[::-1]) == matrix


# --- §3.3 -----------------------------------------------------------------------------------------


def test_the_papers_own_arithmetic() -> None:
    eight = [organ for organ in MEASURED_MINUTES if organ != "kidney_right"]
    paper = efficiency(8000, eight, revised_cases=400)
    assert paper.by_hand.weeks == 1600
    assert round(paper.by_hand.years, 1) == 30.8
    assert paper.in_loop.days == 12.5
    assert paper.factor_per_case == 32
    assert paper.factor == 640
    assert (paper.recorded, paper.factor_recorded) == (None, None)
    # "a staggering factor of 533": 1,600 weeks against three.
    assert round(paper.by_hand.weeks / 3) == 533


def test_recorded_times_take_the_place_of_assumed_ones() -> None:
    throughput = [
        Throughput(annotator="anna", tasks=3, seconds=900, by_day=()),
        Throughput(annotator="berta", tasks=1, seconds=300, by_day=()),
    ]
    recorded = recorded_work(throughput)
    assert recorded is not None
    assert (recorded.tasks, recorded.minutes, recorded.annotators) == (4, 20.0, 2)
    work = efficiency(10, ["liver", "spleen"], missing_labels=5, revised_cases=4, recorded=recorded)
    assert work.by_hand.minutes == 1200
    assert work.by_hand_missing.minutes == 300
    assert work.by_hand_measured.minutes == 10 * (40 + 29)
    assert work.factor_recorded == 60
    assert work.factor_per_case_recorded == pytest.approx(120 / 5)
    assert recorded_work([]) is None


def test_nobody_revised_and_nothing_to_compare() -> None:
    work = efficiency(0, ["liver"], revised_cases=0)
    assert (work.factor, work.by_hand.minutes) == (None, 0.0)


# --- §5 -------------------------------------------------------------------------------------------


def test_the_papers_false_positive_rate() -> None:
    found = [
        FalseRegions(
            case_id=f"c{n:03d}", organ="kidney_left", regions=5 if n == 0 else int(n < 37), ml=1.0
        )
        for n in range(392)
    ]
    rates = false_positive_rates(found)
    (kidney,) = rates.organs
    assert (kidney.cases_without, kidney.cases_with_false) == (392, 37)
    assert f"{kidney.rate:.1%}" == "9.4%"
    assert kidney.regions == 41
    assert false_positive_rates(found[::-1]) == rates


def test_where_every_organ_is_there_no_rate_is_known() -> None:
    rates = false_positive_rates([])
    assert (rates.organs, rates.overall.rate) == ((), None)
