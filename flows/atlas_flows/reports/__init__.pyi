from .arms_report import ArmCurve, build_arms_report
from .distribution_plot import plot_distribution
from .evaluation_report import build_loop_report
from .pages import PageRequest, write_page
from .ranking_report import ReportScope, RunFacts, StepTime, build_report

__all__ = [
    "ArmCurve",
    "PageRequest",
    "ReportScope",
    "RunFacts",
    "StepTime",
    "build_arms_report",
    "build_loop_report",
    "build_report",
    "plot_distribution",
    "write_page",
]
