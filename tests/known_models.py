"""Models and cases of known skill: the truth of every case is what version 0 of a tiny model sees.

A version whose level of tissue is shifted sees less of it, by as much as the test likes.
"""

from __future__ import annotations

import hashlib
import json
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import onnx
from atlas_core.catalog import Catalog
from atlas_core.geometry import VolumeGeometry
from atlas_core.imaging import Volume
from atlas_core.importing import import_folder
from atlas_core.records import Label, LabelSource
from atlas_core.store import CaseStore
from atlas_models.serving import GRAPH_FILE
from atlasloop.answers import AttentionMaps
from atlasloop.client import AttentionClient
from onnx import numpy_helper
from small_cts import write_small_cts
from triton_server import export_tiny_model

NAME = "conv_a"


def export(folder: Path, version: int, *, level: float = 0.0, graph: bytes | None = None) -> Path:
    """`NAME` in another version: like version 0, its level of tissue shifted by `level` steps."""
    export_tiny_model(folder, NAME, version=0)
    model = onnx.load_model(folder / GRAPH_FILE)
    bias = next(t for t in model.graph.initializer if t.name == "bias")
    bias.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(bias) - np.float32(level), "bias"))
    content = model.SerializeToString() if graph is None else graph
    (folder / GRAPH_FILE).write_bytes(content)
    spec = json.loads((folder / "model.json").read_text())
    spec |= {"version": version, "sha256": hashlib.sha256(content).hexdigest()}
    (folder / "model.json").write_text(json.dumps(spec))
    return folder


def import_true_cases(
    folder: Path, count: int, catalog: Catalog, store: CaseStore, attention: str
) -> None:
    """Import `count` CTs, with what the models in service predict as their original labels."""
    write_small_cts(folder, count, seed=4)
    import_folder(folder, "blobs", None, catalog=catalog, store=store, force=True)
    with AttentionClient(attention) as client:
        for case in catalog.cases():
            with client.stream_case(case.id) as stream:
                catalog.add_labels(_labels(case.id, stream.collect(), store))


def _labels(case_id: str, maps: AttentionMaps, store: CaseStore) -> list[Label]:
    grid = maps.grid
    geometry = VolumeGeometry.from_array(grid.shape, grid.affine)
    labels = []
    for organ, value in zip(grid.organs, grid.labels, strict=True):
        mask = np.asfortranarray((maps.label == value).astype(np.uint8))
        stored = store.write_label(case_id, organ, LabelSource.ORIGINAL, Volume(mask, geometry))
        labels.append(
            Label(
                case_id=case_id, organ=organ, source=LabelSource.ORIGINAL, path=stored.path,
                value=1, sha256=stored.sha256, voxels=int(mask.sum()), volume_ml=1.0,
                created_at=datetime.now(UTC),
            )
        )  # fmt: skip
    return labels
