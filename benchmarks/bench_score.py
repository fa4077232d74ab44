"""A CT from its file to attention maps and pseudo label: against MONAI, and against the floor.

Three sides on the same CT, with the same three networks, windows of the same size and the same
overlap:

* the service: `ScoreCase` of the attention service with the models in Triton, as in production: it
  reads the CT, predicts, blends, fuses, and writes nine attention maps and the pseudo label on the
  CT's own grid as compressed files;
* MONAI and NumPy, see `monai_side`; nothing is written. Its windows lie over the whole volume,
  those of the service over the body; ``monai_ratio_per_window`` leaves this advantage out;
* the floor: the windows that the service predicted, run by the same runtime in one process, and
  nothing else; no reading, blending, fusing or writing.

Service and floor take turns, so that both meet the same machine. Peak memory is what the kernel
counts as resident at a process's worst moment: of the attention service (``monai_memory_ratio``),
and of service and Triton with its model processes together (``monai_memory_ratio_with_triton``).

The demo models work at 5 mm, where a CT has four windows and a model server has nothing to do. Here
they are served at 1.5 mm, the paper's grid: same graphs, same weights, as many windows as a real
ensemble has. (What they say of anatomy three times their size is not looked at.)
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from atlas_attention.fusion import DEFAULT_OVERLAP
from atlas_attention.scoring import attend
from atlas_core.imaging import open_slabs, read_volume
from atlas_core.model_spec import ModelSpec, ensemble_key
from atlas_core.organs import ABDOMEN_ATLAS
from atlas_core.records import Reading
from atlas_embedded.settings import EmbeddedSettings
from atlas_models.serving import exported_models, read_spec
from atlasloop.answers import CaseResult
from atlasloop.client import AttentionClient
from bench.inputs import describe, full_size_ct
from bench.measurement import (
    GIB,
    Timing,
    cpu_seconds,
    in_fresh_process,
    machine,
    peak_bytes,
    report,
    say,
)
from bench.serving import TRITON_ENVIRONMENT, Serving, serving
from numpy.typing import NDArray
from peers.monai_side import MonaiRun, run_monai

CASE_ID = "bench_0"
SLICES = 200
FLOOR = Path(__file__).parent / "peers" / "floor.py"


def main() -> None:
    arguments = _arguments()
    described = machine("monai", "torch", "numpy")
    with tempfile.TemporaryDirectory(prefix="atlasloop-bench-") as name:
        folder = Path(name)
        models = _served_at(arguments.models, arguments.spacing_mm, folder / "models")
        specs = [read_spec(model) for model in models]
        with serving(folder / "models") as stack:
            ct = full_size_ct(SLICES)
            stack.store.write_ct(CASE_ID, ct)
            ct_path = Path(shutil.copy(stack.store.ct_path(CASE_ID), folder / "ct.nii.gz"))
            windows = _windows(ct_path, specs)
            np.save(folder / "windows.npy", windows)
            rounds = _service_and_floor(
                stack, specs, models, folder / "windows.npy", arguments.runs
            )
            maps = stack.store.prediction_dir(CASE_ID, Reading.PAPER, rounds.result.ensemble)
            label = read_volume(maps / "pseudo_label.nii.gz").voxels
        fields = rounds.fields()
        if not arguments.without_monai:
            say("MONAI and NumPy: minutes")
            runs, monai_bytes = in_fresh_process(
                run_monai,
                ct_path,
                models,
                DEFAULT_OVERLAP,
                folder / "label.npy",
                arguments.monai_runs,
            )
            fields |= _against_monai(rounds, runs, monai_bytes)
            fields["agreement"] = _agreement(rounds.result, label, runs[-1])
    report(
        "score",
        **fields,
        inputs={
            "ct": describe(ct),
            "models": [spec.architecture for spec in specs],
            "spacing_mm": specs[0].spacing_mm,
            "patch": specs[0].patch,
            "overlap": DEFAULT_OVERLAP,
            "windows": rounds.result.timing.windows,
            "windows_air": rounds.result.timing.windows_air,
        },
        machine=described,
    )


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument(
        "--models", type=Path, default=EmbeddedSettings().models_dir, help="exported models"
    )
    parser.add_argument("--spacing-mm", type=float, default=1.5, help="of the models' grid")
    parser.add_argument("--runs", type=int, default=5, help="of service and floor")
    parser.add_argument("--monai-runs", type=int, default=1, help="each takes minutes")
    parser.add_argument("--without-monai", action="store_true", help="service and floor only")
    return parser.parse_args()


def _served_at(exported: Path, spacing_mm: float, folder: Path) -> list[Path]:
    """The models of `exported`, said to work at `spacing_mm`."""
    models = []
    for model in exported_models(exported):
        copy = folder / model.name
        shutil.copytree(model, copy)
        spec = read_spec(model).model_copy(update={"spacing_mm": (spacing_mm,) * 3})
        (copy / "model.json").write_text(spec.model_dump_json())
        models.append(copy)
    return models


class WindowRecorder:
    """A predictor that keeps the windows of each model and says that there is nothing in them."""

    def __init__(self) -> None:
        self.by_model: dict[str, list[NDArray[np.float32]]] = {}

    def submit(self, spec: ModelSpec, window: NDArray[np.float32]) -> Future[NDArray[np.uint8]]:
        self.by_model.setdefault(spec.name, []).append(window)
        answer: Future[NDArray[np.uint8]] = Future()
        answer.set_result(np.zeros((len(spec.organs), *window.shape), np.uint8))
        return answer


def _windows(ct_path: Path, specs: list[ModelSpec]) -> NDArray[np.float32]:
    """The windows that the service sends to each model, ``[window, z, y, x]``."""
    recorder = WindowRecorder()
    with open_slabs(ct_path) as source:
        for _ in attend(source, specs, recorder, scheme=ABDOMEN_ATLAS):
            pass
    return np.stack(recorder.by_model[specs[0].name])


@dataclass(frozen=True)
class _Rounds:
    """Rounds of service and floor in turn.

    Attributes:
        service_cpu_s, floor_cpu_s: processor time, of the service and Triton together, and of the
            floor's process. Unlike wall time it hardly depends on who else is at work.
        memory: peaks, in GiB.
        result: of the last call.
    """

    service: Timing
    floor: Timing
    service_cpu_s: float
    floor_cpu_s: float
    memory: dict[str, float]
    result: CaseResult

    def fields(self) -> dict[str, Any]:
        return {
            "floor_ratio": round(median_ratio(self.service.seconds, self.floor.seconds), 3),
            "floor_cpu_ratio": round(self.service_cpu_s / self.floor_cpu_s, 3),
            "service": {
                **self.service.rounded(),
                "cpu_s": round(self.service_cpu_s, 2),
                "waiting_for_models_s": round(self.result.timing.predict_s, 2),
                **self.memory,
            },
            "floor": {**self.floor.rounded(), "cpu_s": round(self.floor_cpu_s, 2)},
        }


def median_ratio(ours: Sequence[float], theirs: Sequence[float]) -> float:
    """Of the ratios of runs that followed each other: a machine that slows down slows both."""
    return statistics.median(a / b for a, b in zip(ours, theirs, strict=True))


def _service_and_floor(
    stack: Serving, specs: list[ModelSpec], models: list[Path], windows: Path, runs: int
) -> _Rounds:
    ensemble = ensemble_key([spec.ref for spec in specs])
    pids = [*stack.service_pids(), *stack.triton_pids()]
    service, floor, service_cpu, floor_cpu = [], [], [], []
    with AttentionClient(stack.address) as client, floor_process(windows, models) as floor_round:
        for at in range(1 + runs):  # the first one warms up
            stack.store.delete_prediction(CASE_ID, Reading.PAPER, ensemble)
            began, used = time.perf_counter(), cpu_seconds(pids)
            result = client.score_case(CASE_ID)
            seconds, cpu = time.perf_counter() - began, cpu_seconds(pids) - used
            assert not result.already_scored
            floor_seconds, floor_used = floor_round()
            say(f"service {seconds:.2f} s, floor {floor_seconds:.2f} s")
            if at:
                service.append(seconds)
                service_cpu.append(cpu)
                floor.append(floor_seconds)
                floor_cpu.append(floor_used)
    memory = {
        "service_gib": round(peak_bytes(stack.service_pids()) / GIB, 3),
        "triton_gib": round(peak_bytes(stack.triton_pids()) / GIB, 3),
    }
    return _Rounds(
        Timing(tuple(service)),
        Timing(tuple(floor)),
        statistics.median(service_cpu),
        statistics.median(floor_cpu),
        memory,
        result,
    )


@contextmanager
def floor_process(windows: Path, models: list[Path]) -> Iterator[Any]:
    python = TRITON_ENVIRONMENT / "bin" / "python"
    with subprocess.Popen(
        [python, FLOOR, windows, *models], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        stdin, stdout = process.stdin, process.stdout
        if stdout.readline().strip() != "ready":
            raise RuntimeError("the floor's process ended")

        def floor_round() -> tuple[float, float]:
            """Seconds, and seconds of processor time."""
            stdin.write("\n")
            stdin.flush()
            seconds, cpu = json.loads(stdout.readline())
            return seconds, cpu

        yield floor_round
        stdin.close()


def _against_monai(rounds: _Rounds, runs: list[MonaiRun], monai_bytes: int) -> dict[str, Any]:
    monai = Timing(tuple(run.total_s for run in runs))
    monai_gib = monai_bytes / GIB
    service_gib = rounds.memory["service_gib"]
    both = service_gib + rounds.memory["triton_gib"]
    # What MONAI would need for as many windows as the service has sent.
    share = rounds.result.timing.windows / runs[-1].predictions
    alike = statistics.median(run.total_s - run.seconds["predict"] * (1.0 - share) for run in runs)
    return {
        "monai_ratio": round(monai.median / rounds.service.median, 2),
        "monai_ratio_per_window": round(alike / rounds.service.median, 2),
        "monai_memory_ratio": round(service_gib / monai_gib, 4),
        "monai_memory_ratio_with_triton": round(both / monai_gib, 4),
        "monai": {
            **monai.rounded(),
            "stages_s": runs[-1].seconds,
            "predictions": runs[-1].predictions,
            "gib": round(monai_gib, 3),
        },
    }


def _agreement(result: CaseResult, label: NDArray[np.uint8], run: MonaiRun) -> dict[str, Any]:
    """How far the two sides' results are apart.

    The sides differ in where they fuse (the service on the models' grid, after which attention is
    interpolated; MONAI and NumPy on the CT's grid, with interpolated predictions) and in where
    windows lie: models that never saw a body of this size say something else of a place when it
    lies elsewhere in its window. Over the same windows the nnU-Net's labels agree in 0.92 of the
    voxels within organs.
    """
    theirs = np.load(run.label)
    either = (label > 0) | (theirs > 0)
    return {
        "pseudo_label_equal_voxels": round(float((label == theirs).mean()), 6),
        "pseudo_label_equal_within_organs": round(float((label == theirs)[either].mean()), 6),
        "attention_ml": {
            "service": round(sum(organ.attention_ml for organ in result.organs), 1),
            "monai": round(sum(run.attention_ml.values()), 1),
        },
    }


if __name__ == "__main__":
    main()
