"""Registers the models that Triton serves in the catalog."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from atlas_core.catalog import Catalog
from atlas_core.errors import CorruptFile
from atlas_core.records import Model
from atlas_models.serving import TritonRepository, exported_models, read_spec

from atlas_flows.models.ensembles import adopt

PROVENANCE_FILE = "provenance.json"
"""Beside the graph of a demo model: seed, data and held-out metrics."""


def register_installed(repository: TritonRepository, shipped: Path, catalog: Catalog) -> int:
    """Register every model version in the Triton repository; registered ones stay. The ensemble
    that they are goes on record.

    Args:
        shipped: folder of exported models that came with the program, with their provenance.

    Returns:
        How many were new.

    Raises:
        CorruptFile: a model or its provenance cannot be read.
    """
    origins = {read_spec(folder).ref: folder for folder in exported_models(shipped)}
    specs = [spec for name in repository.models() for spec in repository.installed(name)]
    known = {model.spec.ref for model in catalog.models()}
    new = [spec for spec in specs if spec.ref not in known]
    for spec in new:
        origin = _read_provenance(origins.get(spec.ref))
        catalog.register_model(
            Model(
                spec=spec,
                metrics=_numbers(origin),
                provenance=_texts(origin),
                created_at=datetime.now(UTC),
            )
        )
    adopt(repository, catalog)
    return len(new)


def _read_provenance(folder: Path | None) -> Mapping[str, Any]:
    if folder is None or not (folder / PROVENANCE_FILE).exists():
        return {}
    try:
        content = json.loads((folder / PROVENANCE_FILE).read_text(encoding="utf-8"))
    except ValueError as error:
        raise CorruptFile(
            f"{PROVENANCE_FILE} of model {folder.name} is not JSON", got=error
        ) from None
    return content if isinstance(content, dict) else {}


def _texts(content: Mapping[str, Any]) -> dict[str, str]:
    """Everything that is not a metric, as text; nested values as JSON."""
    return {
        key: value if isinstance(value, str) else json.dumps(value)
        for key, value in content.items()
        if key != "metrics"
    }


def _numbers(content: Mapping[str, Any]) -> dict[str, float]:
    metrics = content.get("metrics")
    if not isinstance(metrics, dict):
        return {}
    return {k: float(v) for k, v in metrics.items() if isinstance(v, int | float)}
