"""The page of two arms: every figure is in it, and nothing is asked of elsewhere."""

from __future__ import annotations

from atlas_flows.reports import ArmCurve, build_arms_report

ARMS = (
    ArmCurve("disagreement", [0.2, 0.6, 0.7], [0.87, 0.86, 0.87], [0.7, 0.8, None], [0, 4, 4],
             [0.0, 50.4, 31.0]),
    ArmCurve("random", [0.2, 0.4, 0.5], [0.87, 0.85, 0.86], [0.7, 0.72, 0.73], [0, 4, 4],
             [0.0, 20.0, 21.0]),
)  # fmt: skip


def test_curves_and_figures_of_both_arms_are_in_the_page() -> None:
    page = build_arms_report(ARMS, title="Two <arms>", notes=["simulated"])
    assert "Two &lt;arms&gt;" in page
    for figure in ("0.600", "0.500", "0.860", "0.730", ">50<", "–"):
        assert figure in page, figure
    assert page.count('circle class="first"') == 3 + 3 + 2
    assert page.count('circle class="second"') == 9
    assert "<script" not in page
    assert "http" not in page.replace("http://www.w3.org", "")
