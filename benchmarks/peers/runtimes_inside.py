"""The part of `bench_runtime` that runs in Triton's own environment (numpy < 2): one model.

python runtimes_inside.py '{"backend": …, "graph": …, "window": …, "cache": …, …}'
"""

from __future__ import annotations

import importlib.util
import json
import statistics
import sys
import time
import types
from pathlib import Path
from typing import Any

import numpy as np


def main() -> None:
    task = json.loads(sys.argv[1])
    backend = _load(Path(task["backend"]))
    window = np.load(task["window"])
    graphs = {}
    results: dict[str, dict[str, Any]] = {}
    for name, make, precision in (
        ("openvino_f32", backend.OpenVinoGraph, "f32"),
        ("openvino_bf16", backend.OpenVinoGraph, "bf16"),
        ("onnxruntime", backend.OnnxRuntimeGraph, "f32"),
    ):
        graph, seconds = _open(backend, make, task, window, precision)
        if graph.precision != precision:
            results[name] = {"skipped": f"this CPU has no {precision}"}
            continue
        graphs[name] = graph
        results[name] = {"open_s": round(seconds, 3)}
        if make is backend.OpenVinoGraph:
            _, again = _open(backend, make, task, window, precision)
            results[name]["open_again_s"] = round(again, 3)
    answers = {name: graph(window).astype(np.int16) for name, graph in graphs.items()}
    timings: dict[str, list[float]] = {name: [] for name in graphs}
    for _ in range(task["rounds"]):
        for name, graph in graphs.items():
            began = time.perf_counter()
            graph(window)
            timings[name].append(time.perf_counter() - began)
    reference = answers["onnxruntime"]
    for name, seconds in timings.items():
        difference = np.abs(answers[name] - reference)
        results[name] |= {
            "median_s": round(statistics.median(seconds), 4),
            "fastest_s": round(min(seconds), 4),
            "largest_difference_bytes": int(difference.max()),
            "voxels_decided_otherwise": int(((answers[name] > 127) != (reference > 127)).sum()),
        }
    print(json.dumps(results))


def _load(path: Path) -> Any:
    """The backend file as a module; what only the server offers is empty here, and not used."""
    sys.modules["triton_python_backend_utils"] = types.ModuleType("triton_python_backend_utils")
    spec = importlib.util.spec_from_file_location("backend", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _open(
    backend: Any, make: Any, task: dict[str, Any], window: np.ndarray, precision: str
) -> tuple[Any, float]:
    cache = Path(task["cache"])
    cache.mkdir(parents=True, exist_ok=True)
    how = backend.Running(precision, task["threads"], streams=1, cache_dir=cache)
    began = time.perf_counter()
    graph = make(task["graph"], window.shape[1:], how)
    return graph, time.perf_counter() - began


if __name__ == "__main__":
    main()
