"""Members of three grids on one CT: against the bare runtime, and the memory of long CTs.

The members are those that sites have: 1.5 mm in windows of 96³, what nnU-Net plans for thick slices
(0.8 × 0.8 × 2.5 mm, 160 × 160 × 64), and 3 mm in 64³. Their graphs are those of the demo's
convolutional networks, which take windows of any size; what they say of anatomy at these scales is
not looked at.

* ``floor_ratio``: `ScoreCase` against the windows that the service predicted, run member after
  member by the same runtime in processes of their own, and nothing else. Service and floor take
  turns.
* ``peak_gib``: what the kernel counts as resident in the service at its worst moment.
* ``slices_ratio``: the same for a CT of four times the slices, each by a service freshly started.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
from atlas_attention.scoring import attend
from atlas_core.imaging import open_slabs
from atlas_core.model_spec import ModelSpec, ensemble_key
from atlas_core.organs import ABDOMEN_ATLAS
from atlas_core.records import Reading
from atlas_embedded.settings import EmbeddedSettings
from atlas_models.serving import read_spec
from atlasloop.client import AttentionClient
from bench.inputs import describe, full_size_ct
from bench.measurement import GIB, Timing, machine, peak_bytes, report, say
from bench.serving import Serving, serving
from bench_score import WindowRecorder, floor_process, median_ratio

CASE_ID = "bench_0"
SLICES = 200
LONGER = 4
"""Times as many slices has the long CT."""

GRIDS: dict[str, tuple[str, tuple[float, float, float], tuple[int, int, int]]] = {
    "monai": ("unet", (1.5, 1.5, 1.5), (96, 96, 96)),
    "planned": ("nnunet", (0.8, 0.8, 2.5), (160, 160, 64)),
    "coarse": ("unet", (3.0, 3.0, 3.0), (64, 64, 64)),
}
"""Members: whose graph, spacing and patch along x, y, z."""


def main() -> None:
    arguments = _arguments()
    described = machine("numpy", "numba")
    with tempfile.TemporaryDirectory(prefix="atlasloop-bench-") as name:
        folder = Path(name)
        models = _members(arguments.models, folder / "models")
        with serving(folder / "models") as stack:
            fields = _rounds(stack, models, folder, arguments.slices, arguments.runs)
            short = peak_bytes(stack.service_pids())
        with serving(folder / "models") as stack:
            stack.store.write_ct(CASE_ID, full_size_ct(LONGER * arguments.slices))
            say(f"scoring {LONGER * arguments.slices} slices")
            with AttentionClient(stack.address) as client:
                client.score_case(CASE_ID)
            long = peak_bytes(stack.service_pids())
    report(
        "mixed",
        floor_ratio=fields.pop("floor_ratio"),
        peak_gib=round(short / GIB, 3),
        slices_ratio=round(long / short, 3),
        long_peak_gib=round(long / GIB, 3),
        **fields,
        machine=described,
    )


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument(
        "--models", type=Path, default=EmbeddedSettings().models_dir, help="exported models"
    )
    parser.add_argument("--slices", type=int, default=SLICES, help="of the CT, at most 200")
    parser.add_argument("--runs", type=int, default=3, help="of service and floor")
    return parser.parse_args()


def _members(exported: Path, folder: Path) -> list[Path]:
    """The members, made of the graphs in `exported`."""
    members = []
    for name, (graph, spacing_mm, patch) in GRIDS.items():
        shutil.copytree(exported / graph, folder / name)
        spec = read_spec(exported / graph).model_copy(
            update={"name": name, "spacing_mm": spacing_mm, "patch": patch}
        )
        (folder / name / "model.json").write_text(spec.model_dump_json())
        members.append(folder / name)
    return members


def _rounds(
    stack: Serving, models: list[Path], folder: Path, slices: int, runs: int
) -> dict[str, Any]:
    """Service and floor in turn."""
    ct = full_size_ct(slices)
    stack.store.write_ct(CASE_ID, ct)
    specs = [read_spec(model) for model in models]
    windows = _windows(stack.store.ct_path(CASE_ID), specs, folder)
    ensemble = ensemble_key([spec.ref for spec in specs])
    service, floor = [], []
    with AttentionClient(stack.address) as client, ExitStack() as processes:
        floors = [
            processes.enter_context(floor_process(windows[spec.name], [model]))
            for spec, model in zip(specs, models, strict=True)
        ]
        for at in range(1 + runs):  # the first one warms up
            stack.store.delete_prediction(CASE_ID, Reading.PAPER, ensemble)
            began = time.perf_counter()
            result = client.score_case(CASE_ID)
            seconds = time.perf_counter() - began
            floor_seconds = sum(round_of_model()[0] for round_of_model in floors)
            say(f"service {seconds:.2f} s, floor {floor_seconds:.2f} s")
            if at:
                service.append(seconds)
                floor.append(floor_seconds)
    return {
        "floor_ratio": round(median_ratio(service, floor), 3),
        "service": {
            **Timing(tuple(service)).rounded(),
            "waiting_for_models_s": round(result.timing.predict_s, 2),
        },
        "floor": Timing(tuple(floor)).rounded(),
        "inputs": {
            "ct": describe(ct),
            "members": {spec.name: [spec.spacing_mm, spec.patch] for spec in specs},
            "fusion_spacing_mm": [round(mm, 3) for mm in result.fusion_spacing_mm],
            "windows": result.timing.windows,
            "windows_air": result.timing.windows_air,
        },
    }


def _windows(ct_path: Path, specs: list[ModelSpec], folder: Path) -> dict[str, Path]:
    """Of each member a file of the windows that the service sends to it, ``[window, z, y, x]``."""
    recorder = WindowRecorder()
    with open_slabs(ct_path) as source:
        for _ in attend(source, specs, recorder, scheme=ABDOMEN_ATLAS):
            pass
    paths = {}
    for name, windows in recorder.by_model.items():
        paths[name] = folder / f"{name}.npy"
        np.save(paths[name], np.stack(windows))
    return paths


if __name__ == "__main__":
    main()
