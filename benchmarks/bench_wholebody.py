"""117 structures on a CT of 512 × 512 × 900 voxels, from scoring to release, stage by stage.

Five members of TotalSegmentator's sizes (1.5 mm, 128³, 18 to 26 classes each) are made up in the
process: their answers have the shapes of structures, and come one by one, as from one device. What
a network costs is measured: one window of such a network on the CPU of this machine, in the same
run. ``overhead_share`` is the processor time of everything but the members against both together,
as of one core, and as if nothing were done while they compute; ``window_s_at_goal`` says from how
many seconds a window on it is at most 0.2. Triton takes no part.

Every stage runs in a process of its own, whose worst moment is its peak.
"""

from __future__ import annotations

import argparse
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from atlas_attention.fusion import Box, WindowPlan
from atlas_attention.observability import AttentionMetrics, Tracer
from atlas_attention.scoring import Admission, AttentionTask, PredictionResult, Scorer, plan_windows
from atlas_attention.settings import AttentionSettings
from atlas_core.assembly import Assemblies, PseudoLabelMap, assemble_case, choose_labels
from atlas_core.catalog import Catalog, choose_organs
from atlas_core.geometry import VolumeGeometry
from atlas_core.imaging import Volume, content_sha256, open_slabs
from atlas_core.records import Case, Dataset, Label, LabelSource, Reading, Score
from atlas_core.release import LicenceRisk, ReleaseOptions, plan_release, write_case
from atlas_core.review import CaseReview, LabelVersions
from atlas_core.store import CaseStore
from atlas_review.settings import ReviewSettings
from atlas_review.volumes import CaseFiles
from bench.inputs import describe, full_size_ct
from bench.measurement import GIB, in_fresh_process, machine, report, say
from bench.whole_body import WaitingMembers, members, network_seconds, scheme

CASE_ID = "bench_0"
GOAL = 0.2
SPACING_MM_OF_CT = (0.8, 0.8, 1.25)
RELEASE = ReleaseOptions(accepted=frozenset(LicenceRisk))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--slices", type=int, default=900)
    parser.add_argument(
        "--window-s", type=float, default=None,
        help="seconds of a member for a window; default: measured on this CPU",
    )  # fmt: skip
    arguments = parser.parse_args()
    described = machine("numpy", "numba")
    window_s = arguments.window_s
    if window_s is None:
        say("a window through one network")
        window_s, _ = in_fresh_process(network_seconds)
    with tempfile.TemporaryDirectory(prefix="atlasloop-bench-") as name:
        folder = Path(name)
        described_ct, _ = in_fresh_process(_import, folder, arguments.slices)
        stages = {}
        for stage in (_score, _stream, _rank, _assemble, _page, _release):
            what = stage.__name__.strip("_")
            say(what)
            numbers, peak = in_fresh_process(stage, folder)
            stages[what] = {**numbers, "peak_gib": round(peak / GIB, 3)}
        prediction = next((folder / "store/cases" / CASE_ID / "predictions/paper").iterdir())
        disk = sum(path.stat().st_size for path in prediction.rglob("*") if path.is_file())
    ours, windows = stages["score"]["cpu_s"], stages["score"]["windows"]
    report(
        "wholebody",
        overhead_share=round(ours / (ours + windows * window_s), 4),
        peak_gib=max(stage["peak_gib"] for stage in stages.values()),
        disk_mb=round(disk / 1e6, 1),
        window_s=round(window_s, 3),
        window_s_at_goal=round(ours * (1 - GOAL) / GOAL / windows, 3),
        stages=stages,
        input=described_ct,
        machine=described,
    )


def _store(folder: Path) -> CaseStore:
    return CaseStore(folder / "store")


def _catalog(folder: Path) -> Catalog:
    return Catalog.open(f"sqlite:///{folder}/catalog.db")


def _import(folder: Path, slices: int) -> Any:
    # The phantom is drawn small; whole bodies fill fields of view of 410 mm.
    ct = full_size_ct(slices)
    grid = VolumeGeometry.from_array(ct.geometry.shape, np.diag([*SPACING_MM_OF_CT, 1.0]))
    ct = Volume(ct.voxels, grid)
    _store(folder).write_ct(CASE_ID, ct)
    with _catalog(folder) as catalog:
        choose_organs(catalog, scheme())
        catalog.add_dataset(Dataset(name="Bench", title="Bench", licence="CC0-1.0"))
        catalog.add_case(
            Case(
                id=CASE_ID,
                dataset="Bench",
                content_sha256=content_sha256(ct),
                shape=ct.geometry.shape,
                affine=ct.geometry.affine,
                source="bench",
                imported_at=datetime.now(UTC),
            )
        )
    return describe(ct)


def _body(plan: WindowPlan) -> Box:
    """What the windows cover."""
    z, y, x = (
        (max(0, starts[0]), min(voxels, starts[-1] + patch))
        for starts, voxels, patch in zip(plan.starts, plan.grid, plan.patch, strict=True)
    )
    return z, y, x


def _scorer(folder: Path, predictor: WaitingMembers) -> Scorer:
    settings = AttentionSettings(store=folder / "store", organs=scheme())
    return Scorer(
        settings, _store(folder), predictor, Admission(1, 1), AttentionMetrics(), Tracer()
    )


def _task() -> AttentionTask:
    return AttentionTask(members(), Reading.PAPER, scheme().names, threading.Event())


def _members(folder: Path) -> WaitingMembers:
    with open_slabs(_store(folder).ct_path(CASE_ID)) as source:
        plan = plan_windows(source, members(), AttentionSettings().overlap)
    return WaitingMembers(plan, _body(plan))


def _score(folder: Path) -> dict[str, Any]:
    predictor = _members(folder)
    scorer = _scorer(folder, predictor)
    began, used = time.perf_counter(), time.process_time()
    result, _ = scorer.score(CASE_ID, _task(), lambda _done, _of: None)
    wall, cpu = time.perf_counter() - began, time.process_time() - used
    _record(folder, result)
    return {
        "cpu_s": round(cpu - predictor.made_cpu_s, 2),
        "made_up_cpu_s": round(predictor.made_cpu_s, 2),
        "wall_s": round(wall, 2),
        "windows": result.windows,
        "attended_organs": sum(organ.attention_voxels > 0 for organ in result.organs),
    }


def _stream(folder: Path) -> dict[str, Any]:
    """What `StreamCase` reads of a case that is scored."""
    scorer = _scorer(folder, _members(folder))
    with _timed() as seconds:
        stored = scorer.stored_map(CASE_ID, _task())
        assert stored is not None
        attended = sum(int(np.count_nonzero(slab.attention[0])) for slab in stored[1])
    return {**seconds, "voxels_of_first_organ": attended}


def _rank(folder: Path) -> dict[str, Any]:
    with _catalog(folder) as catalog, _timed() as seconds:
        ranked = catalog.ranking(Reading.PAPER)
    return {**seconds, "organs": len(ranked[0].organs)}


def _assemble(folder: Path) -> dict[str, Any]:
    store = _store(folder)
    with _catalog(folder) as catalog, _timed() as seconds:
        ensemble = catalog.latest_ensemble(Reading.PAPER)
        assert ensemble is not None
        path = store.relative(store.pseudo_label_path(CASE_ID, Reading.PAPER, ensemble))
        inputs = choose_labels(
            catalog.case(CASE_ID),
            catalog.labels(CASE_ID),
            PseudoLabelMap(Reading.PAPER, ensemble, path),
            {},
            scheme(),
        )
        assembly = assemble_case(store, inputs)
        Assemblies(catalog).record(assembly)
    return {**seconds, "organs": sum(organ.voxels > 0 for organ in assembly.organs)}


def _page(folder: Path) -> dict[str, Any]:
    """All that the review page asks for when a case is opened, and its picture."""
    store, settings = _store(folder), ReviewSettings(store=folder / "store", organs=scheme())
    with _catalog(folder) as catalog, _timed() as seconds:
        files = CaseFiles(store, catalog, LabelVersions(catalog), CaseReview(catalog), settings)
        case = catalog.case(CASE_ID)
        joint = files.attention_map(CASE_ID, None)
        regions = files.regions(case, None, settings.region_threshold, settings.region_min_ml)
        label_map, sheet = files.label_map(case), files.contact_sheet(case)
    maps = [one.file.path.stat().st_size for one in files.organ_attention(CASE_ID)]
    return {
        **seconds,
        "regions": len(regions),
        "joint_attention_mb": round(joint.path.stat().st_size / 1e6, 1),
        "largest_map_mb": round(max(maps) / 1e6, 2),
        "label_map_mb": round(label_map.path.stat().st_size / 1e6, 1),
        "sheet_mb": round(sheet.path.stat().st_size / 1e6, 2),
    }


def _release(folder: Path) -> dict[str, Any]:
    store, target = _store(folder), folder / "release"
    target.mkdir()
    with _catalog(folder) as catalog, _timed() as seconds:
        plan = plan_release(catalog, store, RELEASE)
        written = write_case(target, plan.cases[0], plan, store)
    return {**seconds, "files": len(written)}


@contextmanager
def _timed() -> Iterator[dict[str, Any]]:
    """Wall and processor time of a block, in the dictionary once it has ended."""
    seconds: dict[str, Any] = {}
    began, used = time.perf_counter(), time.process_time()
    yield seconds
    seconds["wall_s"] = round(time.perf_counter() - began, 2)
    seconds["cpu_s"] = round(time.process_time() - used, 2)


def _record(folder: Path, result: PredictionResult) -> None:
    """As flow `score` does."""
    store = _store(folder)
    path = store.relative(store.pseudo_label_path(CASE_ID, Reading.PAPER, result.ensemble))
    score = Score(
        case_id=CASE_ID,
        reading=result.reading,
        ensemble=result.ensemble,
        models=result.models,
        organs=result.organs,
        seconds=result.total_s,
        created_at=result.created_at,
    )
    labels = [
        Label(
            case_id=CASE_ID,
            organ=organ.organ,
            source=LabelSource.PSEUDO,
            path=path,
            value=organ.label,
            sha256=result.pseudo_label_sha256 or "",
            voxels=organ.pseudo_label_voxels,
            volume_ml=organ.pseudo_label_ml,
            models=result.models,
            created_at=result.created_at,
        )
        for organ in result.organs
    ]
    with _catalog(folder) as catalog:
        catalog.record_score(score, labels)


if __name__ == "__main__":
    main()
