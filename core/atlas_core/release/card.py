"""The dataset card of a release: contents, provenance and licences."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

from atlas_core.records import LabelSource
from atlas_core.release.plan import CtFiles, ReleaseFormat, ReleasePlan
from atlas_core.release.splits import PAPER_CASES, Split
from atlas_core.release.statistics import VolumeStatistics, volume_statistics


def release_card(plan: ReleasePlan) -> str:
    """The card in Markdown."""
    parts = [
        f"# {plan.options.name}",
        _summary(plan),
        "## Files\n\n" + _files(plan),
        "## Datasets and licences\n\n" + _datasets(plan),
        "## Splits\n\n" + _splits(plan),
        "## Where the masks come from\n\n" + _sources(plan),
        "## Organ volumes\n\n" + _volumes(plan),
    ]
    if plan.left_out:
        parts.append("## Left out\n\n" + _left_out(plan))
    return "\n\n".join(parts) + "\n"


def _summary(plan: ReleasePlan) -> str:
    organs = ", ".join(f"{organ.label} {organ.name}" for organ in plan.scheme)
    return (
        f"Masks of {len(plan.scheme)} structures in {len(plan.cases)} CT volumes of "
        f"{len(plan.datasets)} datasets. Label ids: {organs}; 0 is the background. Every label map "
        "lies on the grid of its CT."
    )


def _files(plan: ReleasePlan) -> str:
    if plan.options.format is ReleaseFormat.NNUNET:
        layout = (
            "`labelsTr`, `labelsTs` and `dataset.json` in the raw format of nnU-Net (version 2); "
            "`splits_final.json` belongs into its folder of preprocessed data."
        )
    else:
        layout = (
            "One folder per CT: `combined_labels.nii.gz` with the ids above, and a mask of 0 and 1 "
            "per structure in `segmentations/`; an absent organ has an empty mask."
        )
    cts = {
        CtFiles.NONE: "CTs are not included",
        CtFiles.LINK: "CTs are links into the case store of the machine that made this",
        CtFiles.COPY: "CTs are included",
    }[plan.options.cts]
    return (
        f"{layout} {cts}; `cases.csv` names dataset and licence of each, and the SHA-256 of its "
        "grid and voxels, by which whoever has the CT finds it. `provenance.csv` says of every "
        "mask whether it is original, revised or predicted. "
        "`sha256sum -c SHA256SUMS` checks every file."
    )


def _datasets(plan: ReleasePlan) -> str:
    counts = Counter(case.case.dataset for case in plan.cases)
    rows = [
        (d.name, d.title, str(counts[d.name]), d.licence or "unknown", d.url) for d in plan.datasets
    ]
    table = _table(("dataset", "title", "CTs", "licence", "address"), rows)
    text = (
        f"{table}\n\nThe masks of a CT are released under the licence of its dataset, which "
        "`cases.csv` repeats; this card grants nothing beyond it."
    )
    if plan.licence_problems:
        told = [
            f"- {p.risk.value}: {', '.join(p.datasets)}: {p.why}" for p in plan.licence_problems
        ]
        text += "\n\nWhoever made this release accepted:\n\n" + "\n".join(told)
    return text


def _splits(plan: ReleasePlan) -> str:
    counts = Counter((case.case.dataset, case.split) for case in plan.cases)
    rows = [(d.name, *(str(counts[d.name, split]) for split in Split)) for d in plan.datasets]
    totals = ("all", *(str(sum(c.split is split for c in plan.cases)) for split in Split))
    paper = ":".join(str(PAPER_CASES[split]) for split in Split)
    return (
        f"{_table(('dataset', *(split.value for split in Split)), [*rows, totals])}\n\n"
        f"In the proportions {paper} of AbdomenAtlas-8K, in every dataset; the CTs of a patient, "
        "where known, stay together. `splits/` lists them."
    )


def _sources(plan: ReleasePlan) -> str:
    counts = Counter(
        (organ.organ, organ.source) for case in plan.cases for organ in case.assembly.organs
    )
    rows = [
        (name, *(str(counts[name, source]) for source in LabelSource)) for name in plan.scheme.names
    ]
    return _table(("organ", *(source.value for source in LabelSource)), rows)


def _volumes(plan: ReleasePlan) -> str:
    rows = [_volume_row(row) for row in volume_statistics(plan)]
    return _table(("dataset", "organ", "CTs", "absent", "median (ml)", "quartiles (ml)"), rows)


def _volume_row(row: VolumeStatistics) -> Sequence[str]:
    head = (row.dataset, row.organ, str(row.cases), str(row.absent))
    if row.median is None or row.q1 is None or row.q3 is None:
        return (*head, "", "")
    return (*head, f"{row.median:.1f}", f"{row.q1:.1f} to {row.q3:.1f}")


def _left_out(plan: ReleasePlan) -> str:
    return f"{len(plan.left_out)} CTs of these datasets, which are not complete."


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(
        "| " + " | ".join(cell.replace("|", "/").replace("\n", " ") for cell in line) + " |"
        for line in lines
    )
