"""The report: one self-contained HTML page of the priority list and pictures of its top cases."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jinja2
from atlas_core.catalog import Catalog, warnings_by_case
from atlas_core.errors import NotFound
from atlas_core.imaging.pictures import (
    ATTENTION_SHOWN,
    HEAT,
    SOFT_TISSUE_HU,
    Cut,
    Layer,
    Plane,
    cut_case,
    data_uri,
    picture,
)
from atlas_core.model_spec import ModelRef
from atlas_core.organs import OrganScheme
from atlas_core.ranking import is_absent
from atlas_core.records import Case, Dataset, Model, OrganScore, RankBy, RankedCase, Reading
from atlas_core.store import CaseStore

from atlas_flows.evaluation import ORDINARY
from atlas_flows.reports.distribution_plot import TITLES, plot_distribution
from atlas_flows.scoring.priority_list import TOP_SHARE, cases_in, driving, of_other_ensembles

ROWS_SHOWN = 200
"""Rows of the ranked table; a browser stays quick, and few readers go further."""

FRAME_REM = 24
"""Longest side of a picture on the page."""

SCALE_BAR_MM = 50


@dataclass(frozen=True)
class StepTime:
    """Wall time of one step of a run."""

    name: str
    seconds: float
    note: str = ""


@dataclass(frozen=True)
class RunFacts:
    """What the page says of the run besides what the catalog knows.

    Attributes:
        title: heading of the page.
        steps: wall times, in order.
        notes: things that a reader must know before trusting a number.
        refused: file and reason of everything that was not taken.
        kinds: word shown beside a case, by case id (how a phantom is hard, for instance).
    """

    title: str = "Priority list"
    steps: tuple[StepTime, ...] = ()
    notes: tuple[str, ...] = ()
    refused: tuple[tuple[str, str], ...] = ()
    kinds: Mapping[str, str] | None = None


@dataclass(frozen=True)
class ReportScope:
    """Which list the page shows, and for how many cases it has pictures."""

    reading: Reading = Reading.PAPER
    by: RankBy = RankBy.DISAGREEMENT
    dataset: str | None = None
    top: int = 5


def build_report(
    catalog: Catalog, store: CaseStore, scope: ReportScope, facts: RunFacts | None = None
) -> str:
    """The page as HTML text. Memory is bounded by one slab and the pictures of one case at a time.

    Raises:
        NotFound: no such dataset, or no case of the scope was scored.
        Conflict: some scores lack what the list is sorted by.
    """
    facts = facts or RunFacts()
    if scope.dataset is not None:
        catalog.dataset(scope.dataset)
    ensemble = catalog.latest_ensemble(scope.reading, scope.dataset)
    ranked = catalog.ranking(scope.reading, ensemble, scope.dataset, scope.by) if ensemble else []
    if not ranked or ensemble is None:
        raise NotFound(
            f"no case was scored with the reading {scope.reading.value}",
            case=scope.dataset,
            remedy="run `atlasloop score` first",
        )
    datasets = {dataset.name: dataset for dataset in catalog.datasets()}
    kinds = facts.kinds or {}
    scheme = catalog.organ_scheme()
    warned = warnings_by_case(catalog, [case.case_id for case in ranked[:ROWS_SHOWN]])
    warnings = {case_id: [one.text for one in found] for case_id, found in warned.items()}
    cards = [
        _card(catalog.case(case.case_id), store, case, scope, ensemble, scheme)
        | {"kind": _kind(case, kinds, datasets), "warnings": warnings.get(case.case_id, [])}
        for case in ranked[: scope.top]
    ]
    organs = [o for o in scheme if any(_size(case, o.name) is not None for case in ranked)]
    urgent = cases_in(TOP_SHARE, len(ranked))
    models = _models(catalog, scope.reading, ensemble, ranked[0].case_id)
    others = catalog.scored_otherwise(scope.reading, ensemble, scope.dataset)
    phantoms = sum(_is_phantom(case, datasets) for case in ranked)
    page = {
        "title": facts.title,
        "subtitle": _subtitle(ranked, datasets),
        "reading": scope.reading.value,
        "by": scope.by.value,
        "by_title": TITLES[scope.by][0],
        "facts": _facts(ranked, scope, models, urgent),
        "notes": (
            *_caveats(phantoms, len(ranked), models),
            *filter(None, [of_other_ensembles(others)]),
            *facts.notes,
        ),
        "organs": organs,
        "several_datasets": len({case.dataset for case in ranked}) > 1,
        "rows": [
            _row(case, organs, ranked[0], scope, urgent)
            | {"kind": _kind(case, kinds, datasets), "warnings": warnings.get(case.case_id, [])}
            for case in ranked[:ROWS_SHOWN]
        ],
        "warned": any(warnings.values()),
        "total": len(ranked),
        "urgent": urgent,
        "left_out": any(case.left_out for case in ranked),
        "plot": plot_distribution([case.by(scope.by) or 0.0 for case in ranked], urgent, scope.by),
        "cards": cards,
        "models": models,
        "steps": facts.steps,
        "refused": facts.refused,
        "environment": environment(),
        "version": version("atlasloop"),
        "made_at": f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC",
    }
    return page_template("report.html.j2").render(
        page=page,
        window=tuple(f"{hu:.0f}".replace("-", "−") for hu in SOFT_TISSUE_HU),
        attention_max=f"{ATTENTION_SHOWN:g}",
        ticks=["0", *(f"{ATTENTION_SHOWN * q / 4:g}" for q in (1, 2, 3)), f"≥ {ATTENTION_SHOWN:g}"],
    )


def environment() -> list[tuple[str, str]]:
    """Machine and software, without names of hosts, users or folders."""
    return [
        ("processor", f"{_processor()}, {os.cpu_count()} cores"),
        ("memory", f"{_memory_gib():.0f} GiB"),
        ("system", f"{platform.system()} {platform.machine()}, Python {platform.python_version()}"),
        ("Atlas Loop", version("atlasloop")),
        ("Prefect", version("prefect")),
    ]


def _card(
    case: Case,
    store: CaseStore,
    ranked: RankedCase,
    scope: ReportScope,
    ensemble: str,
    scheme: OrganScheme,
) -> dict[str, Any]:
    cuts = cut_case(
        store.ct_path(case.id),
        store.pseudo_label_path(case.id, scope.reading, ensemble),
        [
            store.attention_path(case.id, scope.reading, ensemble, size.organ)
            for size in ranked.organs
            if size.attention_voxels  # a map of zeros has no file
        ],
    )
    unseen = store.left_out(case.id, scope.reading, ensemble)
    strips = [[_picture(cut, layer, case, scheme) for layer in Layer] for cut in cuts]
    return {
        "rank": ranked.rank,
        "case_id": case.id,
        "attention_ml": ranked.attention_ml,
        "disagreement": ranked.disagreement,
        "because_of": _because_of(ranked, scope.by),
        "grid": _grid_sentence(case),
        "unseen": f"{100 * unseen:.0f}" if unseen else "",
        "strips": strips,
        "organs": [
            {
                "title": scheme[size.organ].title,
                "colour": scheme[size.organ].colour,
                "attention_ml": size.attention_ml,
                "disagreement": _shown_disagreement(size),
                "pseudo_label_ml": size.pseudo_label_ml,
            }
            for size in ranked.organs
        ],
        "left_out": ", ".join(name.replace("_", " ") for name in ranked.left_out),
    }


def _picture(cut: Cut, layer: Layer, case: Case, scheme: OrganScheme) -> dict[str, Any]:
    height_mm, width_mm = cut.size_mm
    shown = "CT" if layer is Layer.CT else f"CT with {layer.value}"
    where = f"{cut.plane.value} slice {cut.index + 1} of {_depth(case, cut.plane)}"
    return {
        "uri": data_uri(picture(cut, layer, scheme)),
        "alt": f"Case {case.id}: {shown}, {where}",
        "caption": f"{shown} · {where}" if layer is Layer.CT else shown,
        "letters": cut.plane.letters,
        "aspect": f"{width_mm:.1f}/{height_mm:.1f}",
        "max_rem": f"{FRAME_REM * min(1.0, width_mm / height_mm):.1f}",
        "scale_percent": f"{min(90.0, 100 * SCALE_BAR_MM / width_mm):.1f}",
    }


def _depth(case: Case, plane: Plane) -> int:
    return case.geometry.canonical().shape[plane.axis]


def _grid_sentence(case: Case) -> str:
    geometry = case.geometry
    shape = " × ".join(str(n) for n in geometry.shape)
    spacing = " × ".join(f"{s:.3g}" for s in geometry.spacing_mm)
    return f"{case.dataset} · {shape} voxels of {spacing} mm · {geometry.axis_codes}"


def _row(
    case: RankedCase, organs: Sequence[Any], first: RankedCase, scope: ReportScope, urgent: int
) -> dict[str, Any]:
    value, largest = case.by(scope.by) or 0.0, first.by(scope.by) or 0.0
    return {
        "rank": case.rank,
        "case_id": case.case_id,
        "dataset": case.dataset,
        "disagreement": case.disagreement,
        "attention_ml": case.attention_ml,
        "because_of": _because_of(case, scope.by),
        "percent": f"{100 * value / largest:.1f}" if largest else "0",
        "urgent": case.rank <= urgent,
        "card": case.rank <= scope.top,
        "organs": [_size(case, organ.name) for organ in organs],
    }


def _because_of(case: RankedCase, by: RankBy) -> str:
    """The organs that drive a case's place; see `priority_list.driving`."""
    return driving(case.organs, by).replace("_", " ")


def _shown_disagreement(organ: OrganScore) -> float | None:
    """None where it was not counted, or all models agree that the organ is absent."""
    return None if is_absent(organ) else organ.disagreement


def _size(case: RankedCase, organ: str) -> float | None:
    return next((size.attention_ml for size in case.organs if size.organ == organ), None)


def _kind(case: RankedCase, kinds: Mapping[str, str], datasets: Mapping[str, Dataset]) -> str:
    """What a reader must know of the case: that it is a phantom, and of which kind."""
    kind = kinds.get(case.case_id, ORDINARY)
    if kind != ORDINARY:
        return f"phantom, {kind.replace('_', ' ')}"
    return "phantom" if _is_phantom(case, datasets) else ""


def _is_phantom(case: RankedCase, datasets: Mapping[str, Dataset]) -> bool:
    dataset = datasets.get(case.dataset)
    return dataset is not None and dataset.preset == PHANTOM_PRESET


PHANTOM_PRESET = "phantoms"
"""Preset name of generated phantoms: it distinguishes them from patients everywhere."""


def _subtitle(ranked: Sequence[RankedCase], datasets: Mapping[str, Dataset]) -> str:
    names = sorted({case.dataset for case in ranked})
    titles = [datasets[name].title or name if name in datasets else name for name in names]
    count = "1 case" if len(ranked) == 1 else f"{len(ranked)} cases"
    return f"{count} of {', '.join(titles)}, most in need of revision first"


def _facts(
    ranked: Sequence[RankedCase],
    scope: ReportScope,
    models: Sequence[Mapping[str, Any]],
    urgent: int,
) -> list[tuple[str, str]]:
    total = sum(case.attention_ml for case in ranked)
    top = sum(case.attention_ml for case in ranked[:urgent])
    name, unit = TITLES[scope.by]
    return [
        ("cases", str(len(ranked))),
        ("revise next (top 5 %)", str(urgent)),
        ("their share of attention", f"{100 * top / total:.0f} %" if total else "–"),
        (f"largest {name.lower()}", f"{_millilitres(ranked[0].by(scope.by) or 0.0)}{unit}"),
        ("sorted by", name.lower()),
        ("reading", scope.reading.value),
        ("ensemble", " + ".join(f"{model['name']} M{model['version']}" for model in models)),
    ]


def _models(
    catalog: Catalog, reading: Reading, ensemble: str, case_id: str
) -> list[dict[str, Any]]:
    score = catalog.score(case_id, reading, ensemble)
    registered = {model.spec.ref: model for model in catalog.models()}
    return [_model_row(ref, registered.get(ref)) for ref in (score.models if score else ())]


def _model_row(ref: ModelRef, model: Model | None) -> dict[str, Any]:
    spec = model.spec if model else None
    return {
        "name": ref.name,
        "version": ref.version,
        "sha256": ref.sha256,
        "architecture": spec.architecture if spec else "–",
        "spacing": " × ".join(f"{s:g}" for s in spec.spacing_mm) if spec else "–",
        "patch": " × ".join(str(n) for n in spec.patch) if spec else "–",
        # As the provenance file of the demo models says it.
        "phantom_trained": "phantom" in (model.provenance.get("data", "") if model else ""),
    }


def _caveats(phantoms: int, total: int, models: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """What a reader must know before trusting a picture."""
    if phantoms == total:
        yield "The cases on this page are procedurally generated phantoms, not patients."
    elif phantoms:
        yield f"{phantoms} of the {total} cases are procedurally generated phantoms, not patients."
    if any(model["phantom_trained"] for model in models):
        yield (
            "The models are small demonstration networks, trained for an hour on generated CTs: "
            "phantoms, and CTs drawn from the label maps of three people. They show how the loop "
            "works, not how well it can segment, and are no medical device."
        )
        if phantoms < total:
            yield (
                "On real CTs the labels of these models are rough, and of small organs poor. "
                "Geometry, files, sizes and times are what a site would see; for useful labels put "
                "trained models into service."
            )


def _processor() -> str:
    """Model of the processor as the kernel names it; elsewhere what Python knows."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def _memory_gib() -> float:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30


def _millilitres(value: float) -> str:
    """Three significant digits at most: what an attention size is worth."""
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 1 else f"{value:.2f}"


def page_template(name: str) -> jinja2.Template:
    """A template of `atlas_flows/templates`; everything put into it is escaped."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("atlas_flows"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
    )
    environment.filters["ml"] = _millilitres
    environment.globals["heat"] = HEAT  # the style sheet that all pages share
    return environment.get_template(name)
