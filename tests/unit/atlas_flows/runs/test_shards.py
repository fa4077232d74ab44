"""Shards of a run."""

from __future__ import annotations

import pytest
from atlas_flows.runs.shards import SHARD_CASES, split_into_shards


@pytest.mark.parametrize("cases", [0, 1, 5, 64, 1000])
@pytest.mark.parametrize("in_flight", [1, 2, 8])
def test_shards_hold_every_case_once_and_keep_all_workers_busy(cases: int, in_flight: int) -> None:
    ids = [f"c{n}" for n in range(cases)]
    found = split_into_shards(ids, in_flight)
    assert [case for shard in found for case in shard] == ids
    assert all(1 <= len(shard) <= SHARD_CASES for shard in found)
    assert len(found) >= min(cases, in_flight)
