"""From a CT to its attention maps: the run itself, and writing it into the case store."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Generator, Sequence
from concurrent.futures import CancelledError
from contextlib import ExitStack, closing
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import numpy as np
from atlas_core.errors import NotFound
from atlas_core.geometry import Float3, VolumeGeometry
from atlas_core.imaging import (
    CroppedMapReader,
    CroppedMapsWriter,
    SlabReader,
    SlabWriter,
    read_header,
    read_stored_slabs,
)
from atlas_core.model_spec import ModelSpec, ensemble_key, ensemble_organs
from atlas_core.records import Reading
from atlas_core.store import CaseStore, PredictionDraft

from atlas_attention.fusion import ATTENTION_SCALE, open_compute
from atlas_attention.observability import AttentionMetrics, Tracer
from atlas_attention.scoring.admission import Admission
from atlas_attention.scoring.ct_sources import open_case
from atlas_attention.scoring.locating import cheapest
from atlas_attention.scoring.model_grid import CtSource
from atlas_attention.scoring.native_grid import default_slab_slices
from atlas_attention.scoring.pipeline import (
    GridSlab,
    MemberCallback,
    MemberSlab,
    Predictor,
    ProgressCallback,
    attend,
)
from atlas_attention.scoring.prediction import PredictionResult, read_prediction
from atlas_attention.settings import AttentionSettings

SERVICE_VERSION = version("atlasloop")

_log = logging.getLogger(__name__)

FILE_AXIS = 2
"""Stored maps are read along the last axis of the file, whatever its direction in the patient."""


@dataclass(frozen=True)
class AttentionTask:
    """What is to be computed for one CT.

    Attributes:
        specs: the ensemble.
        organs: attention channels wanted, in order.
        cancelled: set once the caller no longer wants the result.
        fusion_spacing_mm: of the grid where the models meet; None: see `FusionPlan.fusion_grid`.
        locator: looks where organs can be, if the service locates; None: the cheapest of `specs`.
    """

    specs: tuple[ModelSpec, ...]
    reading: Reading
    organs: tuple[str, ...]
    cancelled: threading.Event
    fusion_spacing_mm: Float3 | None = None
    locator: ModelSpec | None = None

    @property
    def ensemble(self) -> str:
        """Key of models and fusion grid, whatever the models' order; see `ensemble_key`."""
        return ensemble_key([spec.ref for spec in self.specs], self.fusion_spacing_mm)


class Scorer:
    """Runs tasks, and keeps nothing of a CT between them.

    Raises:
        ConfigurationError: the GPU that is configured cannot be used.
    """

    def __init__(
        self,
        settings: AttentionSettings,
        store: CaseStore,
        predictor: Predictor,
        admission: Admission,
        metrics: AttentionMetrics,
        tracer: Tracer,
    ) -> None:
        self._settings = settings
        self._store = store
        self._predictor = predictor
        self._admission = admission
        self._metrics = metrics
        self._tracer = tracer
        self._compute = open_compute(settings.device)

    def organs(self, specs: Sequence[ModelSpec]) -> tuple[str, ...]:
        """The organs of the configured scheme that an ensemble predicts, in order."""
        return ensemble_organs(specs, self._settings.organs)

    def labels(self, organs: Sequence[str]) -> tuple[int, ...]:
        """Label values of `organs`.

        Raises:
            UnknownLabel: the configured organ scheme has no label value for an organ.
        """
        return self._settings.organs.select(list(organs)).labels

    def run(
        self,
        source: CtSource,
        task: AttentionTask,
        on_progress: ProgressCallback | None = None,
        on_member: MemberCallback | None = None,
    ) -> Generator[GridSlab, None, PredictionResult]:
        """Slabs of one CT; the generator returns its `PredictionResult`.

        Closing the generator abandons the answers that are still to come.
        """
        began = time.monotonic()
        waited = 0.0
        run = attend(
            source,
            task.specs,
            self._predictor,
            task.reading,
            task.organs,
            scheme=self._settings.organs,
            fusion_spacing_mm=task.fusion_spacing_mm,
            overlap=self._settings.overlap,
            windows_in_flight=self._settings.windows_in_flight or None,
            threads=self._settings.kernel_threads or None,
            compute=self._compute,
            locator=(task.locator or cheapest(task.specs)) if self._settings.locating else None,
            on_progress=on_progress,
            on_member=on_member,
            cancelled=task.cancelled,
        )
        with closing(run), self._tracer.part("attend") as describe:
            while True:
                asked = time.monotonic()
                slab = next(run, None)
                waited += time.monotonic() - asked
                if slab is None:
                    break
                yield slab
                del slab  # freed before the next one is made
            summary = run.summary
            fuse_s = max(0.0, waited - summary.predict_s)
            describe(
                {
                    "atlasloop.ensemble": task.ensemble,
                    "atlasloop.reading": task.reading.value,
                    "atlasloop.windows": summary.windows,
                    "atlasloop.windows_air": summary.windows_air,
                    "atlasloop.predict_s": summary.predict_s,
                    "atlasloop.fuse_s": fuse_s,
                }
            )
        for ref in summary.silent:
            _log.warning(
                "model %s found no organ anywhere in a CT",
                ref,
                extra={"fields": {"model": str(ref)}},
            )
        self._metrics.stage_seconds.labels("predict").inc(summary.predict_s)
        self._metrics.stage_seconds.labels("fuse").inc(fuse_s)
        self._metrics.windows_air.inc(summary.windows_air)
        return PredictionResult.of_run(
            summary,
            task.specs,
            task.reading,
            labels=self.labels(task.organs),
            voxel_ml=source.geometry.voxel_ml,
            overlap=self._settings.overlap,
            total_s=time.monotonic() - began,
            service_version=SERVICE_VERSION,
            ensemble=task.ensemble,
        )

    def open_case(self, case_id: str, task: AttentionTask) -> SlabReader:
        """The CT of a case for a task; see `ct_sources.open_case`."""
        return open_case(
            self._store,
            case_id,
            task.specs,
            max_voxels=self._settings.max_voxels,
            spool_folder=self._settings.spool_folder,
        )

    def score(
        self,
        case_id: str,
        task: AttentionTask,
        on_progress: ProgressCallback,
        *,
        newer_than: int = 0,
    ) -> tuple[PredictionResult, bool]:
        """The result for a case, and whether it was stored already.

        Args:
            newer_than: number of a stored result that will not do; the next one is made beside it.

        Files are written all or nothing; of two calls for the same prediction the second waits, and
        then reads what the first has stored.

        Raises:
            NotFound: no such case.
            CancelledError: the task was cancelled; nothing was written.
        """
        key = (case_id, task.reading, task.ensemble)
        stored = self._stored(case_id, task)
        if stored is not None and stored.number > newer_than:
            return stored, True
        with self._admission.exclusive(key, task.cancelled):
            stored = self._stored(case_id, task)
            if stored is not None and stored.number > newer_than:
                return stored, True
            with self._admission.working(task.cancelled):
                after = 0 if stored is None else stored.number
                return self._score_anew(case_id, task, on_progress, after)

    def stored_map(
        self, case_id: str, task: AttentionTask
    ) -> tuple[VolumeGeometry, Generator[GridSlab, None, PredictionResult]] | None:
        """Grid and slabs of stored maps; None unless the store has all organs of the task.

        The generator returns their `PredictionResult`, limited to these organs.

        Raises:
            CorruptFile: the stored files cannot be read.
        """
        stored = self._stored(case_id, task)
        if stored is None:
            return None
        of_organ = {size.organ: size for size in stored.organs}
        if not of_organ.keys() >= set(task.organs):
            return None
        wanted = stored.model_copy(
            update={"organs": tuple(of_organ[organ] for organ in task.organs)}
        )
        label = self._store.pseudo_label_path(case_id, task.reading, task.ensemble, stored.number)
        geometry = read_header(label).geometry
        return geometry, self._stored_slabs(case_id, task, wanted, label, geometry)

    def _stored_slabs(
        self,
        case_id: str,
        task: AttentionTask,
        prediction: PredictionResult,
        label_path: Path,
        geometry: VolumeGeometry,
    ) -> Generator[GridSlab, None, PredictionResult]:
        where = (case_id, task.reading, task.ensemble)
        limit = self._settings.max_voxels
        channels = len(task.organs)
        slices = default_slab_slices(channels, geometry.shape[0] * geometry.shape[1])
        with ExitStack() as opened:
            maps: list[tuple[int, CroppedMapReader]] = []
            for at, organ in enumerate(prediction.organs):
                if organ.attention_voxels > 0:
                    path = self._store.attention_path(*where, organ.organ, prediction.number)
                    reader = CroppedMapReader(path, geometry, max_voxels=limit)
                    maps.append((at, opened.enter_context(closing(reader))))
            start = 0
            labels = read_stored_slabs(label_path, slices, max_voxels=limit)
            for label in opened.enter_context(closing(labels)):
                if task.cancelled.is_set():
                    raise CancelledError
                stop = start + label.shape[FILE_AXIS]
                attention = np.zeros((channels, *label.shape[::-1]), np.uint8).transpose(0, 3, 2, 1)
                for at, reader in maps:
                    reader.read_into(start, stop, attention[at])
                yield GridSlab(FILE_AXIS, start, stop, attention, label)
                start = stop
        return prediction

    def _stored(self, case_id: str, task: AttentionTask) -> PredictionResult | None:
        path = self._store.result_path(case_id, task.reading, task.ensemble)
        return read_prediction(path, case_id)

    def _score_anew(
        self, case_id: str, task: AttentionTask, on_progress: ProgressCallback, after: int
    ) -> tuple[PredictionResult, bool]:
        key = (case_id, task.reading, task.ensemble)
        with (
            self.open_case(case_id, task) as source,
            self._store.new_prediction(*key, after=after) as draft,
            CroppedMapsWriter(draft.folder, source.geometry) as members,
            closing(
                self.run(source, task, on_progress, self._member_writer(draft, task, members))
            ) as slabs,
        ):
            prediction = self._write(draft, case_id, source.geometry, task, slabs, members)
        if draft.published:
            return prediction, False
        # Another service on the same store was first: its files are the result.
        stored = self._stored(case_id, task)
        if stored is None:
            raise NotFound("the prediction was deleted while it was written", case=case_id)
        return stored, True

    def _member_writer(
        self, draft: PredictionDraft, task: AttentionTask, files: CroppedMapsWriter
    ) -> MemberCallback | None:
        """Writes the label maps of the members, if they are asked for."""
        if not self._settings.member_labels:
            return None
        paths = [draft.member_label_path(spec.ref) for spec in task.specs]
        paths[0].parent.mkdir()

        def write(slab: MemberSlab) -> None:
            with self._metrics.stage("write"):
                i, j, k = (slab.start if axis == slab.axis else 0 for axis in range(3))
                files.add(paths[slab.member], (i, j, k), slab.label)

        return write

    def _write(
        self,
        draft: PredictionDraft,
        case_id: str,
        geometry: VolumeGeometry,
        task: AttentionTask,
        slabs: Generator[GridSlab, None, PredictionResult],
        members: CroppedMapsWriter,
    ) -> PredictionResult:
        organs = task.organs
        with ExitStack() as files:
            label = files.enter_context(SlabWriter(draft.pseudo_label_path, geometry, "uint8"))
            attention = files.enter_context(
                CroppedMapsWriter(draft.folder, geometry, slope=ATTENTION_SCALE)
            )
            paths = [draft.attention_path(organ) for organ in organs]
            while True:
                try:
                    slab = next(slabs)
                except StopIteration as end:
                    prediction = end.value
                    break
                with self._metrics.stage("write"):
                    label.write(slab.axis, slab.start, slab.stop, slab.label)
                    i, j, k = (slab.start if axis == slab.axis else 0 for axis in range(3))
                    for path, block in zip(paths, slab.attention, strict=True):
                        attention.add(path, (i, j, k), block)
                del slab  # freed before the next one is made
            with self._metrics.stage("write"):
                written = attention.finish()
                by_path = members.finish()
                by_model = {
                    str(spec.ref): by_path[path]
                    for spec in task.specs
                    if (path := draft.member_label_path(spec.ref)) in by_path
                }
                prediction = prediction.stored(
                    case_id,
                    draft.number,
                    {
                        organ: written[path]
                        for organ, path in zip(organs, paths, strict=True)
                        if path in written
                    },
                    label.close(),
                    by_model,
                )
        draft.result_path.write_text(prediction.model_dump_json(indent=2) + "\n", "utf-8")
        return prediction
