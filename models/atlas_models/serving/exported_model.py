"""An exported model on disk: the graph and its description."""

from __future__ import annotations

import hashlib
from pathlib import Path

from atlas_core.errors import CorruptFile, NotFound
from atlas_core.model_spec import ModelSpec
from pydantic import ValidationError

GRAPH_FILE = "model.onnx"


SPEC_FILE = "model.json"


BACKEND_FILE = "model.py"


CONFIG_FILE = "config.pbtxt"


_BACKEND_SOURCE = Path(__file__).with_name("triton_backend") / BACKEND_FILE


def read_spec(exported: Path) -> ModelSpec:
    """The `ModelSpec` of an exported model, its graph checked against the SHA-256 in it.

    Raises:
        NotFound: ``model.onnx`` or ``model.json`` is missing.
        CorruptFile: ``model.json`` is not a `ModelSpec`, or describes another graph.
    """
    spec = _read_spec(exported)
    _require_sha256(exported / GRAPH_FILE, spec)
    return spec


def exported_models(folder: Path) -> tuple[Path, ...]:
    """Folders directly below `folder` that hold an exported model, sorted by name."""
    if not folder.is_dir():
        return ()
    return tuple(sorted(path.parent for path in folder.glob(f"*/{SPEC_FILE}")))


def _read_spec(folder: Path) -> ModelSpec:
    path = folder / SPEC_FILE
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise NotFound(f"no exported model in folder {folder.name}", expected=SPEC_FILE) from None
    return _parse_spec(text, folder.name)


def _parse_spec(text: str, owner: str) -> ModelSpec:
    try:
        return ModelSpec.model_validate_json(text)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        raise CorruptFile(
            f"the description of model {owner} is not valid",
            expected="a ModelSpec as JSON",
            got=f"{place or 'text'}: {first['msg']}",
        ) from None


def _require_sha256(graph: Path, spec: ModelSpec) -> None:
    try:
        with graph.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
    except FileNotFoundError:
        raise NotFound(f"the graph of model {spec.name} is missing", expected=GRAPH_FILE) from None
    if found != spec.sha256:
        raise CorruptFile(
            f"the graph of model {spec.name} version {spec.version} is not the exported one",
            expected=f"sha256 {spec.sha256[:12]}…",
            got=f"{found[:12]}…",
            remedy="export or copy the model again",
        )
