"""Laws of the simulated site; see `benchmarks/simulated/loop_simulation.py`."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))
from simulated.loop_simulation import ServiceTimes, Site, simulate

seconds = st.floats(0.0, 50.0)
times = st.builds(ServiceTimes, seconds, seconds, st.floats(0.0, 0.1), st.floats(0.0, 900.0))
sites = st.builds(Site, st.integers(1, 5), st.integers(1, 8), st.integers(1, 8), st.floats(0.5, 9))
SLACK = 1 + 1e-9


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 60), sites, times)
def test_no_stage_does_more_than_it_can(cases: int, site: Site, times: ServiceTimes) -> None:
    made = simulate(cases, site, times)
    assert all(0 <= share <= SLACK for share in made.busy.values())
    longest = times.attention_s + times.models_s + times.orchestration_s
    assert made.scored_hours * 3600 * SLACK >= longest
    assert made.scored_hours * 3600 <= cases * longest * SLACK
    assert made.hours >= made.scored_hours


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 40), sites, times)
def test_twice_the_nodes_never_take_longer(cases: int, site: Site, times: ServiceTimes) -> None:
    double = Site(2 * site.nodes, site.cores, site.in_flight, site.annotators)
    assert simulate(cases, double, times).scored_hours <= (
        simulate(cases, site, times).scored_hours * SLACK
    )


def test_one_at_a_time_is_the_sum_and_the_slowest_stage_is_the_bottleneck() -> None:
    alone = Site(nodes=1, cores=1, in_flight=1)
    made = simulate(100, alone, ServiceTimes(2.0, 3.0, 1.0, 0.0))
    assert made.scored_hours == pytest.approx(100 * 6 / 3600)
    assert made.bottleneck == "models"
    many = simulate(100, Site(nodes=1, cores=4, in_flight=8), ServiceTimes(2.0, 3.0, 1.0, 0.0))
    assert many.scored_hours == pytest.approx((2 + 100 * 3 + 1) / 3600)
    assert many.busy["models"] > 0.98
    revised = simulate(100, alone, ServiceTimes(2.0, 3.0, 1.0, 3600.0))
    assert revised.hours == pytest.approx(made.hours + 5)
    assert revised.bottleneck == "annotators"
