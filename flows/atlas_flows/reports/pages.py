"""The HTML pages as people ask for them, by command or form: which one, and of what."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from atlas_core.catalog import Catalog
from atlas_core.errors import InvalidInput
from atlas_core.records import RankBy, Reading
from atlas_core.store import CaseStore

from atlas_flows.evaluation import EvaluationScope, evaluate_all, open_ground_truth
from atlas_flows.reports.evaluation_report import build_loop_report
from atlas_flows.reports.ranking_report import ReportScope, RunFacts, build_report
from atlas_flows.runs import write_file
from atlas_flows.settings import Places


@dataclass(frozen=True)
class PageRequest:
    """A page that somebody asks for.

    Attributes:
        top: cases with pictures.
        evaluation: the paper's tables and figures instead of the list.
        truth: folder with true masks, for an evaluation.
        original_truth: the original labels are the truth.
        nsd: surface Dice too.

    Raises:
        InvalidInput: a combination that means nothing.
    """

    reading: Reading
    by: RankBy
    dataset: str | None
    top: int
    evaluation: bool = False
    truth: Path | None = None
    original_truth: bool = False
    nsd: bool = True

    def __post_init__(self) -> None:
        if not self.evaluation and (self.truth is not None or self.original_truth):
            raise InvalidInput("the list needs no truth", remedy="ask for an evaluation")
        if self.evaluation and self.dataset is not None:
            raise InvalidInput("an evaluation is of all datasets", remedy="name no dataset")
        if self.truth is not None and self.original_truth:
            raise InvalidInput(
                "a folder of truth and the original labels exclude each other",
                remedy="give one of them",
            )


def write_page(
    here: Places, request: PageRequest, output: Path, *, on_case: Callable[[int], None]
) -> None:
    """Write the page to `output`, all or nothing.

    Raises:
        NotFound: no such dataset.
        ConfigurationError: `output` cannot be written.
    """
    with Catalog.open(here.catalog_url) as catalog:
        store = CaseStore(here.store)
        if request.evaluation:
            judged = request.truth is not None or request.original_truth
            page = build_loop_report(
                evaluate_all(
                    catalog,
                    store,
                    open_ground_truth(request.truth, catalog, store) if judged else None,
                    EvaluationScope(reading=request.reading, nsd=request.nsd),
                    on_case=on_case,
                )
            )
        else:
            scope = ReportScope(request.reading, request.by, request.dataset, request.top)
            page = build_report(catalog, store, scope, RunFacts())
    write_file(output, page)
