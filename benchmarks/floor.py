"""The least that an ensemble costs: its graphs run over windows in one process, nothing else.

Runs in Triton's environment, because the runtime lives there, and by the very class that runs the
graphs inside Triton. A round per line on standard input; each answers its seconds as one line.

    floor.py WINDOWS.npy MODEL_FOLDER...
"""

import json
import runpy
import sys
import time
import types
from pathlib import Path

import numpy as np

BACKEND = Path(__file__).parents[1] / "models/atlas_models/triton_backend/model.py"


def main() -> None:
    # Only Triton's stub process has this module; the graphs themselves need nothing of it.
    sys.modules["triton_python_backend_utils"] = types.ModuleType("triton_python_backend_utils")
    backend = runpy.run_path(str(BACKEND))
    windows = np.load(sys.argv[1])
    graphs = [
        backend["OpenVinoGraph"](
            str(Path(folder) / "model.onnx"), (1, *windows.shape[1:]), "f32", 0, None
        )
        for folder in sys.argv[2:]
    ]
    for graph in graphs:
        graph(windows[:1, None])
    print("ready", flush=True)
    for _ in sys.stdin:
        began = time.perf_counter()
        for graph in graphs:
            for window in windows:
                graph(window[None, None])
        print(json.dumps(time.perf_counter() - began), flush=True)


if __name__ == "__main__":
    main()
