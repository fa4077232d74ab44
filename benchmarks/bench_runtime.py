"""What runs the exported graphs fastest on this CPU: OpenVINO or ONNX Runtime.

OpenVINO is measured in float32, and in bfloat16 where the CPU has it; what that changes in the
answers is given in bytes of 255. Runs the very classes of Triton's backend file
(`atlas_models/serving/triton_backend/model.py`) in the very environment that Triton runs them
in, one
window of a phantom at a time. Rounds of all runtimes follow one another in turn, so that a busy
moment of the machine meets all alike.

    .venv/bin/python benchmarks/bench_runtime.py [--models FOLDER] [--threads N] [--rounds N]
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import tempfile
from pathlib import Path

import numpy as np
from atlas_core.imaging.resampling import resample_image
from atlas_core.model_spec import ModelSpec
from atlas_core.phantoms import make_phantom
from atlas_embedded.settings import EmbeddedSettings
from atlas_embedded.triton_environment import find_triton
from atlas_models import serving
from bench.measurement import machine, report, say
from numpy.typing import NDArray

BACKEND = Path(serving.__file__).with_name("triton_backend") / "model.py"
INSIDE = Path(__file__).parent / "peers" / "runtimes_inside.py"
PHANTOM_SEED = 7


def main() -> None:
    defaults = EmbeddedSettings()
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", type=Path, default=defaults.models_dir)
    parser.add_argument("--threads", type=int, default=0, help="0: all cores")
    parser.add_argument("--rounds", type=int, default=10)
    options = parser.parse_args()
    described = machine("numpy")
    environment = find_triton(defaults.triton_environment)
    results = {}
    with tempfile.TemporaryDirectory(prefix="atlasloop-bench-") as folder:
        for exported in serving.exported_models(options.models):
            spec = serving.read_spec(exported)
            say(f"{spec.name}, window {spec.patch}")
            window = Path(folder) / f"{spec.name}.npy"
            np.save(window, _window(spec))
            results[spec.name] = _measure(
                environment.root / "bin" / "python",
                {
                    "backend": str(BACKEND),
                    "graph": str(exported / serving.GRAPH_FILE),
                    "window": str(window),
                    "cache": str(Path(folder) / "cache" / spec.name),
                    "threads": options.threads,
                    "rounds": options.rounds,
                },
            )
    report(
        "runtime",
        models=results,
        inputs={"threads": options.threads or described["cores"], "rounds": options.rounds},
        machine=described,
    )


def _window(spec: ModelSpec) -> NDArray[np.float32]:
    """float32 [1, 1, z, y, x]: the middle of a phantom on the model's grid, air where it ends."""
    phantom = make_phantom(PHANTOM_SEED)
    grid = phantom.geometry.resampled(spec.spacing_mm)
    image = resample_image(phantom.ct, phantom.geometry, grid)
    window = np.full(spec.patch, -1024.0, dtype=np.float32)
    source, target = [], []
    for have, want in zip(image.shape, spec.patch, strict=True):
        length = min(have, want)
        source.append(slice((have - length) // 2, (have - length) // 2 + length))
        target.append(slice((want - length) // 2, (want - length) // 2 + length))
    window[tuple(target)] = image[tuple(source)]
    return np.ascontiguousarray(window.transpose(2, 1, 0)[None, None])


def _measure(python: Path, task: dict[str, object]) -> dict[str, object]:
    done = subprocess.run(
        [python, INSIDE, json.dumps(task)],
        stdout=subprocess.PIPE,
        check=True,
        text=True,
        env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"},
    )
    return dict(json.loads(done.stdout))


if __name__ == "__main__":
    main()
