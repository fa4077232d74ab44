"""How a version of a model is trained."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from atlas_core.records import LabelSource


@dataclass(frozen=True)
class TrainingOrder:
    """How a version is trained.

    Attributes:
        config: YAML file, or name of a shipped configuration; None: that of the version which is
            trained further. An imported nnU-Net has its plans instead.
        parent: name and version (None: the newest) to train further; None: from scratch.
        run_folder: checkpoints and curves; None: ``<training runs>/<name>-<t>``.
        datasets: only their cases; empty: all.
        labels: "assembled" learns from the assembled map of each case instead of its label files.
        overrides: fields of the configuration.
        validation_share: of the cases, held out by their ids; `promote` judges by these.
        sources: labels to learn from; per organ the best of them counts.
        version: t of the new version; None: the next one. One that exists already, because
            a run was killed before it took note of it, is taken as it is.
        loaders: threads that prepare patches in advance; they do not change the result.
    """

    config: str | None
    parent: tuple[str, int | None] | None = None
    run_folder: Path | None = None
    datasets: tuple[str, ...] = ()
    labels: Literal["in_force", "assembled"] = "in_force"
    overrides: Mapping[str, Any] = field(default_factory=dict)
    validation_share: float = 0.1
    sources: tuple[LabelSource, ...] = (LabelSource.ORIGINAL, LabelSource.REVISED)
    version: int | None = None
    loaders: int = 0
