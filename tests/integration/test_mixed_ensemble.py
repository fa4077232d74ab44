"""Members of different grids, patches and organs in a real Triton."""

from __future__ import annotations

from concurrent.futures import Future
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from atlas_attention.scoring import GridSlab, Predictor, attend
from atlas_attention.triton import TritonOptions, TritonPredictor
from atlas_core.errors import NotFound
from atlas_core.imaging import open_slabs
from atlas_core.model_spec import ModelSpec
from atlas_core.organs import ABDOMEN_ATLAS
from atlas_core.records import OrganScore, Reading
from atlas_embedded.triton_environment import TritonEnvironment
from numpy.typing import NDArray
from small_cts import write_small_cts
from triton_server import TritonServer, export_tiny_model, install


@dataclass(eq=False)
class InProcess:
    """The same graphs, run by ONNX Runtime in this process."""

    folders: dict[str, Path]
    sessions: dict[str, onnxruntime.InferenceSession] = field(default_factory=dict)

    def submit(self, spec: ModelSpec, window: NDArray[np.float32]) -> Future[NDArray[np.uint8]]:
        if spec.name not in self.sessions:
            self.sessions[spec.name] = onnxruntime.InferenceSession(
                self.folders[spec.name] / "model.onnx", providers=["CPUExecutionProvider"]
            )
        answer: Future[NDArray[np.uint8]] = Future()
        answer.set_result(self.sessions[spec.name].run(["soft"], {"ct": window[None, None]})[0][0])
        return answer


def scored(
    ct: Path, specs: tuple[ModelSpec, ...], predictor: Predictor, reading: Reading
) -> tuple[list[GridSlab], tuple[OrganScore, ...]]:
    with open_slabs(ct) as source:
        run = attend(source, specs, predictor, reading, scheme=ABDOMEN_ATLAS)
        return list(run), run.summary.organs


def test_triton_serves_members_as_they_are(
    triton_environment: TritonEnvironment, tmp_path: Path
) -> None:
    members = {
        "swin": {},
        "planned": {"patch": (20, 24, 12), "spacing_mm": (2.0, 2.0, 5.0), "mirrored": True,
                    "resampling": "nnunet", "organs": ("liver", "aorta")},
        "coarse": {"patch": (16, 16, 16), "spacing_mm": (4.0, 4.0, 4.0), "overlap": 0.25,
                   "organs": ("spleen", "tail", "liver", "pancreas")},
    }  # fmt: skip
    folders = {name: tmp_path / name for name in members}
    for seed, (name, options) in enumerate(members.items()):
        export_tiny_model(folders[name], name, seed=seed, **options)  # type: ignore[arg-type]
    install(tmp_path / "repository", list(folders.values()))
    write_small_cts(tmp_path, 1, seed=0)
    ct = tmp_path / "case_0.nii.gz"
    server = TritonServer(triton_environment, tmp_path / "repository", tmp_path / "triton.log")
    server.start(list(members))
    try:
        with closing(TritonPredictor(TritonOptions(server.address))) as predictor:
            specs = predictor.ensemble()
            assert {spec.name: spec.mirrored for spec in specs}["planned"]
            for reading in Reading:
                slabs, scores = scored(ct, specs, predictor, reading)
                expected, in_process = scored(ct, specs, InProcess(folders), reading)
                for ours, theirs in zip(slabs, expected, strict=True):
                    assert np.array_equal(ours.attention, theirs.attention)
                    assert np.array_equal(ours.label, theirs.label)
                assert scores == in_process
                assert {score.organ: score.voices for score in scores} == {
                    "aorta": 1, "liver": 3, "pancreas": 2, "spleen": 2
                }  # fmt: skip
                assert any(score.attention_ml for score in scores)
            with pytest.raises(NotFound, match="model missing is not in service"):
                predictor.ensemble(["swin", "missing"])
    finally:
        server.stop()
