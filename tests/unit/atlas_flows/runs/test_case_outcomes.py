"""What runs say of their cases."""

from __future__ import annotations

import pytest
from atlas_flows.commands.case_progress import case_progress, show_failures
from atlas_flows.runs import CaseOutcome, CasesFailed, Outcome, ProgressCounter, RunSummary
from atlas_flows.runs.case_outcomes import current_observer

FAILED = CaseOutcome(case_id="ct_1", outcome=Outcome.FAILED, message="ct_1: its mask is gone")


def test_the_case_of_a_failure_is_said_once_wherever_it_is_shown(
    capsys: pytest.CaptureFixture[str],
) -> None:
    summary = RunSummary(skipped=1, outcomes=(FAILED,), seconds=1.0)
    with case_progress("assembling"):
        observer = current_observer()
        assert observer is not None
        ProgressCounter(1, observer).add(FAILED)
    show_failures(summary, "assembled")
    said = capsys.readouterr()
    lines = [line for line in (said.out + said.err).splitlines() if "its mask is gone" in line]
    lines += [str(CasesFailed(summary, "assembled")), *summary.failures_as_markdown()[3:4]]
    assert [line.count("ct_1") for line in lines] == [1, 1, 1, 1]


def test_another_name_at_the_head_of_a_message_stays() -> None:
    other = CaseOutcome(case_id="ct_1", outcome=Outcome.FAILED, message="liver.nii.gz: truncated")
    assert other.message == "liver.nii.gz: truncated"
