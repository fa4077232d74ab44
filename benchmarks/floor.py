"""The least that an ensemble costs: its graphs run over windows in one process, nothing else.

Runs in Triton's environment, because the runtime lives there, and by the very class that runs the
graphs inside Triton. The graphs run one after the other with all cores, or side by side with their
share of the cores each: whichever is faster here, tried on a few windows. A round per line on
standard input; each answers its seconds and its processor time as one line.

    floor.py WINDOWS.npy MODEL_FOLDER...
"""

import json
import math
import os
import runpy
import sys
import time
import types
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

BACKEND = Path(__file__).parents[1] / "models/atlas_models/triton_backend/model.py"


TRIED = 3
"""Windows by which the two arrangements are compared."""


def main() -> None:
    # Only Triton's stub process has this module; the graphs themselves need nothing of it.
    sys.modules["triton_python_backend_utils"] = types.ModuleType("triton_python_backend_utils")
    open_graph = runpy.run_path(str(BACKEND))["OpenVinoGraph"]
    windows = np.load(sys.argv[1])
    arrangements = [
        Arrangement(open_graph, sys.argv[2:], windows.shape[1:], side_by_side)
        for side_by_side in (False, True)
    ]
    for arrangement in arrangements:
        arrangement.seconds(windows[:1])
    fastest = min(arrangements, key=lambda arrangement: arrangement.seconds(windows[:TRIED]))
    print("ready", flush=True)
    for _ in sys.stdin:
        used = time.process_time()
        seconds = fastest.seconds(windows)
        print(json.dumps([seconds, time.process_time() - used]), flush=True)


class Arrangement:
    """All graphs of the ensemble, run one after the other or side by side."""

    def __init__(self, open_graph, folders, window_shape, side_by_side):
        cores = len(os.sched_getaffinity(0))
        threads = math.ceil(cores / len(folders)) if side_by_side else cores
        self._graphs = [
            open_graph(str(Path(folder) / "model.onnx"), (1, *window_shape), "f32", threads, None)
            for folder in folders
        ]
        self._pool = ThreadPoolExecutor(len(folders) if side_by_side else 1)

    def seconds(self, windows) -> float:
        """For all `windows` through all graphs."""
        began = time.perf_counter()
        list(
            self._pool.map(
                lambda graph: [graph(window[None, None]) for window in windows], self._graphs
            )
        )
        return time.perf_counter() - began


if __name__ == "__main__":
    main()
