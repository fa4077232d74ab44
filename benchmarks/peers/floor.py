"""The least that an ensemble costs: its graphs run over windows in one process, nothing else.

Runs in Triton's environment, because the runtime lives there, and by the very class that runs the
graphs inside Triton. The graphs run one after the other with all cores, side by side with their
share of the cores each, or on every core a copy of all graphs that takes its share of the windows:
whichever is fastest here, tried on a few windows. A round per line on standard input; each answers
its seconds and its processor time as one line.

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

BACKEND = Path(__file__).parents[2] / "models/atlas_models/serving/triton_backend/model.py"


TRIED = 4
"""Windows by which the arrangements are compared."""

TRIES = 3
"""Of every arrangement, in turn; its fastest counts, as only what disturbs makes one slower."""


def main() -> None:
    # Only Triton's stub process has this module; the graphs themselves need nothing of it.
    sys.modules["triton_python_backend_utils"] = types.ModuleType("triton_python_backend_utils")
    backend = runpy.run_path(str(BACKEND))
    open_graph, running = backend["OpenVinoGraph"], backend["Running"]
    windows = np.load(sys.argv[1])
    cores = len(os.sched_getaffinity(0))
    models = [str(Path(folder) / "model.onnx") for folder in sys.argv[2:]]
    window = (1, *windows.shape[1:])

    def graphs(threads):
        return [open_graph(model, window, running(threads=threads)) for model in models]

    share = math.ceil(cores / len(models))
    arrangements = [
        Arrangement([graphs(cores)]),
        Arrangement([[graph] for graph in graphs(share)], every_worker_all_windows=True),
        Arrangement([graphs(1) for _ in range(cores)]),
    ]
    for arrangement in arrangements:
        arrangement.seconds(windows[:1])
    tries = [[a.seconds(windows[:TRIED]) for a in arrangements] for _ in range(TRIES)]
    fastest = arrangements[int(np.argmin(np.min(tries, axis=0)))]
    print("ready", flush=True)
    for _ in sys.stdin:
        used = time.process_time()
        seconds = fastest.seconds(windows)
        print(json.dumps([seconds, time.process_time() - used]), flush=True)


class Arrangement:
    """Workers side by side, each with graphs of its own.

    Args:
        workers: the graphs of each; a worker runs them one after the other over a window.
        every_worker_all_windows: else the windows are dealt out among the workers.
    """

    def __init__(self, workers, every_worker_all_windows=False):
        self._workers = workers
        self._step = 1 if every_worker_all_windows else len(workers)
        self._pool = ThreadPoolExecutor(len(workers))

    def seconds(self, windows) -> float:
        """For all `windows` through all graphs."""
        began = time.perf_counter()
        list(self._pool.map(self._work, range(len(self._workers)), [windows] * len(self._workers)))
        return time.perf_counter() - began

    def _work(self, worker, windows):
        for window in windows[worker % self._step :: self._step]:
            for graph in self._workers[worker]:
                graph(window[None, None])


if __name__ == "__main__":
    main()
