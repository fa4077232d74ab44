"""The state of the atlas in numbers: attention sizes (Fig. 4), organ volumes (Fig. 1b, 9), and
the throughput of annotators."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence

import numpy as np
import sqlalchemy as sa
from pydantic import ConfigDict, Field
from sqlalchemy import Connection

from atlas_core.catalog import Catalog
from atlas_core.catalog import tables as t
from atlas_core.frozen_model import FrozenModel
from atlas_core.records import LabelSource, RankBy, RankedCase, Reading
from atlas_core.review.records import TOP_SHARE, Throughput, WorkDay

VOLUMES_SHOWN = 1000
"""Limit of the volumes that are listed per organ; of more, every n-th by size."""


class CaseSize(FrozenModel):
    """Attention size of one case, and how much the models disagree about it."""

    model_config = ConfigDict(extra="ignore")  # a response: its schema stays open

    case_id: str
    attention_ml: float
    disagreement: float | None = Field(description="None: it was not counted.")
    in_top_share: bool = Field(
        description="Of the list by disagreement; where some scores lack it, by attention size."
    )


class OrganVolumes(FrozenModel):
    """Volumes of one organ over all cases that have it, in millilitres."""

    model_config = ConfigDict(extra="ignore")  # a response: its schema stays open

    count: int
    q1: float
    median: float
    q3: float
    values: tuple[float, ...] = Field(description="Rising; at most 1000 of them.")


class ReviewStatistics:
    """Computes the statistics of a catalog. Safe to share between threads."""

    def __init__(self, catalog: Catalog) -> None:
        self._catalog = catalog

    def attention_by_dataset(self, reading: Reading) -> dict[str, list[CaseSize]]:
        """Cases of each dataset by descending attention size (Fig. 4); the top 5 % of the whole
        priority list are marked."""
        ranked = self._catalog.ranking(reading, by=RankBy.SIZE)
        counted = all(case.disagreement is not None for case in ranked)
        by = RankBy.DISAGREEMENT if counted else RankBy.SIZE
        urgent = sorted(ranked, key=lambda case: (-(case.by(by) or 0.0), case.case_id))
        top = urgent[: math.ceil(round(TOP_SHARE * len(ranked), 6))]
        return _by_dataset(ranked, {case.case_id for case in top})

    def organ_volumes(self) -> dict[str, OrganVolumes]:
        """Volumes of the labels in force, without organs that the patient lacks."""
        with self._catalog.transaction(write=False) as connection:
            volumes = _volumes_in_force(connection)
        return {organ: _spread(sorted(found)) for organ, found in sorted(volumes.items())}

    def throughput(self) -> list[Throughput]:
        """Finished work of every annotator, by name and day (UTC)."""
        w = t.revision_work.c
        query = sa.select(w.annotator, w.finished_at, w.seconds).order_by(
            w.annotator, w.finished_at
        )
        days: dict[str, dict[str, list[float]]] = {}
        with self._catalog.transaction(write=False) as connection:
            for annotator, finished_at, seconds in connection.execute(query):
                by_day = days.setdefault(annotator, {})
                by_day.setdefault(finished_at.date().isoformat(), []).append(seconds)
        return [_throughput(annotator, by_day) for annotator, by_day in days.items()]


def _by_dataset(ranked: Sequence[RankedCase], top: Collection[str]) -> dict[str, list[CaseSize]]:
    datasets: dict[str, list[CaseSize]] = {}
    for case in ranked:
        size = CaseSize(
            case_id=case.case_id,
            attention_ml=case.attention_ml,
            disagreement=case.disagreement,
            in_top_share=case.case_id in top,
        )
        datasets.setdefault(case.dataset, []).append(size)
    return datasets


def _volumes_in_force(connection: Connection) -> dict[str, list[float]]:
    """Volume of the preferred label of every case and organ, by organ; see `assembly.preferred`."""
    columns = t.labels.c
    source = sa.case(
        {LabelSource.ORIGINAL.value: 0, LabelSource.REVISED.value: 1}, value=columns.source, else_=2
    )
    query = sa.select(columns.case_id, columns.organ, columns.volume_ml).order_by(
        columns.case_id, columns.organ, source, columns.created_at.desc(), columns.sha256.desc()
    )
    volumes: dict[str, list[float]] = {}
    last: tuple[str, str] | None = None
    for case_id, organ, volume_ml in connection.execute(query):
        if (case_id, organ) != last and volume_ml > 0:
            volumes.setdefault(organ, []).append(volume_ml)
        last = (case_id, organ)
    return volumes


def _spread(volumes: list[float]) -> OrganVolumes:
    q1, median, q3 = (float(value) for value in np.quantile(volumes, (0.25, 0.5, 0.75)))
    step = math.ceil(len(volumes) / VOLUMES_SHOWN)
    return OrganVolumes(
        count=len(volumes), q1=q1, median=median, q3=q3, values=tuple(volumes[::step])
    )


def _throughput(annotator: str, by_day: dict[str, list[float]]) -> Throughput:
    days = [
        WorkDay(day=day, tasks=len(seconds), seconds=math.fsum(seconds))
        for day, seconds in sorted(by_day.items())
    ]
    return Throughput(
        annotator=annotator,
        tasks=sum(day.tasks for day in days),
        seconds=math.fsum(day.seconds for day in days),
        by_day=tuple(days),
    )
