from .distribution_plot import plot_distribution
from .evaluation_report import build_loop_report
from .pages import PageRequest, write_page
from .ranking_report import ReportScope, RunFacts, StepTime, build_report

__all__ = [
    "PageRequest",
    "ReportScope",
    "RunFacts",
    "StepTime",
    "build_loop_report",
    "build_report",
    "plot_distribution",
    "write_page",
]
