"""The five calls of ``atlasloop.attention.v1``: thin shells around scoring and fusion.

Errors are raised as they are; `interceptor.CallInterceptor` turns them into a status. Answers are
generators, from which gRPC takes the next message only when the client has read the last one, so a
slow reader slows the work down instead of filling memory.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Generator, Iterable, Iterator
from contextlib import ExitStack, closing
from datetime import UTC, datetime
from itertools import chain

import grpc
from atlas_core.errors import InvalidInput
from atlas_core.geometry import VolumeGeometry
from atlas_core.store import CaseStore
from atlasloop.attention.v1 import attention_pb2 as pb
from atlasloop.attention.v1 import attention_pb2_grpc as stubs

from atlas_attention.fusion import ATTENTION_SCALE
from atlas_attention.observability import AttentionMetrics, Tracer
from atlas_attention.scoring import (
    FILE_AXIS,
    SERVICE_VERSION,
    Admission,
    AttentionTask,
    GridSlab,
    PredictionResult,
    Scorer,
    receive_volume,
)
from atlas_attention.server.background_job import BackgroundJob
from atlas_attention.server.interceptor import cancellation
from atlas_attention.server.messages import (
    TO_READING,
    ensemble_message,
    grid_message,
    model_message,
    read_coding,
    read_geometry,
    read_reading,
    require_small_slices,
    result_message,
    slab_messages,
    wanted_organs,
)
from atlas_attention.server.soft_stream import SLAB_AXIS, SoftFusion, SoftGrid, read_soft_grid
from atlas_attention.settings import AttentionSettings
from atlas_attention.triton import TritonPredictor


class AttentionServicer(stubs.AttentionServiceServicer):
    """Scores CTs of `store`, and CTs that clients send, with the models of `predictor`."""

    def __init__(
        self,
        settings: AttentionSettings,
        store: CaseStore,
        predictor: TritonPredictor,
        metrics: AttentionMetrics,
        tracer: Tracer,
    ) -> None:
        self._settings = settings
        self._tracer = tracer
        self._predictor = predictor
        self._metrics = metrics
        self._admission = Admission(
            settings.max_calls,
            settings.max_waiting,
            lambda what, by: getattr(metrics, what).inc(by),
            max_uploads=settings.max_uploads,
        )
        self._scorer = Scorer(settings, store, predictor, self._admission, metrics, tracer)

    @property
    def full(self) -> bool:
        """Whether the next call would be refused."""
        return self._admission.full

    def GetInfo(  # noqa: N802  gRPC's name
        self, request: pb.GetInfoRequest, context: grpc.ServicerContext
    ) -> pb.GetInfoResponse:
        """See the proto."""
        models = self._predictor.server_models()
        in_use = models.choose()
        ensemble = in_use.voices
        settings = self._settings
        organs = self._scorer.organs(ensemble)
        return pb.GetInfoResponse(
            service_version=SERVICE_VERSION,
            models=[model_message(spec) for spec in ensemble],
            older_models=[model_message(spec) for spec in models.ready if spec not in ensemble],
            organs=organs,
            labels=self._scorer.labels(organs),
            readings=TO_READING.values(),
            limits=pb.Limits(
                max_voxels=settings.max_voxels,
                max_message_bytes=settings.max_message_bytes,
                max_fuse_models=settings.max_fuse_models,
                max_fuse_organs=settings.max_fuse_organs,
                max_calls=settings.max_calls,
                idle_timeout_s=int(settings.idle_timeout_s),
            ),
            attention_scale=ATTENTION_SCALE,
            ensembles=[ensemble_message(one) for one in models.ensembles()],
            ensemble_in_use=in_use.name,
            organ_scheme=settings.organs.name,
            organ_scheme_sha256=settings.organs.digest,
        )

    def ScoreCase(  # noqa: N802  gRPC's name
        self, request: pb.ScoreCaseRequest, context: grpc.ServicerContext
    ) -> Iterator[pb.ScoreCaseResponse]:
        """See the proto."""
        with self._admission.admitted():
            task = self._task(request, (), context)
            job = BackgroundJob(
                lambda report: self._scorer.score(
                    request.case_id, task, report, newer_than=request.newer_than
                )
            )
            try:
                for done, total in job.progress():
                    yield pb.ScoreCaseResponse(
                        progress=pb.Progress(windows_done=done, windows_total=total)
                    )
                prediction, already = job.result()
                yield pb.ScoreCaseResponse(
                    result=result_message(prediction, already_scored=already)
                )
            finally:
                task.cancelled.set()  # the client may have left early
                job.join()

    def StreamCase(  # noqa: N802  gRPC's name
        self, request: pb.StreamCaseRequest, context: grpc.ServicerContext
    ) -> Iterator[pb.AttentionResponse]:
        """See the proto."""
        with self._admission.admitted():
            task = self._task(request, request.organs, context)
            stored = self._scorer.stored_map(request.case_id, task)
            if stored is not None:
                geometry, slabs = stored
                self._require_small_slices(geometry, task, FILE_AXIS)
                with self._admission.working(task.cancelled):
                    yield self._grid(geometry, task)
                    prediction = yield from self._slabs(slabs)
                yield pb.AttentionResponse(result=result_message(prediction))
                return
            with (
                self._admission.working(task.cancelled),
                self._scorer.open_case(request.case_id, task) as source,
            ):
                self._require_small_slices(source.geometry, task)
                yield self._grid(source.geometry, task)
                prediction = yield from self._slabs(self._scorer.run(source, task))
                named = prediction.model_copy(update={"case_id": request.case_id})
                yield pb.AttentionResponse(result=result_message(named))

    def AttendVolume(  # noqa: N802  gRPC's name
        self, request_iterator: Iterator[pb.AttendVolumeRequest], context: grpc.ServicerContext
    ) -> Iterator[pb.AttentionResponse]:
        """See the proto."""
        cancelled = cancellation(context)
        with self._admission.admitted(), ExitStack() as received:
            first = next(request_iterator, None)
            if first is None or first.WhichOneof("part") != "header":
                raise InvalidInput("malformed upload", expected="a header in the first message")
            header = first.header
            geometry = read_geometry(header.grid, self._settings.max_voxels)
            coding = read_coding(header)
            task = self._task(header, header.organs, context, cancelled)
            geometry.require_bounded(spec.spacing_mm for spec in task.specs)
            self._require_small_slices(geometry, task)
            yield self._grid(geometry, task)
            # However slow the client is, it keeps nobody from working. Its place is kept until the
            # work begins, so that the spool holds a bounded number of volumes.
            received.enter_context(self._admission.receiving(cancelled))
            with self._metrics.stage("receive"), self._tracer.part("receive"):
                source = receive_volume(
                    geometry, coding, request_iterator, spool_folder=self._settings.spool_folder
                )
            with source, self._admission.working(cancelled):
                received.close()
                prediction = yield from self._slabs(self._scorer.run(source, task))
            yield pb.AttentionResponse(result=result_message(prediction))

    def FuseSoftPredictions(  # noqa: N802  gRPC's name
        self,
        request_iterator: Iterator[pb.FuseSoftPredictionsRequest],
        context: grpc.ServicerContext,
    ) -> Iterator[pb.AttentionResponse]:
        """See the proto."""
        cancelled = cancellation(context)
        began = time.monotonic()
        with self._admission.admitted():
            first = next(request_iterator, None)
            if first is None or first.WhichOneof("part") != "header":
                raise InvalidInput("malformed upload", expected="a header in the first message")
            grid = read_soft_grid(first.header, self._settings, self._settings.organs)
            require_small_slices(
                grid.geometry, SLAB_AXIS, len(grid.organs), self._settings.max_message_bytes
            )
            yield grid_message(grid.geometry, grid.organs, grid.labels)
            fusion = SoftFusion(grid, self._settings.kernel_threads or None)
            with self._admission.receiving(cancelled):
                # A place for work is held only while there is work, not while the client sends or
                # reads. What one message gives is smaller than the message.
                for message in chain(request_iterator, (None,)):
                    with self._admission.working(cancelled):
                        slabs = fusion.finish() if message is None else fusion.push(message)
                        certain = deque(slabs)
                    while certain:
                        yield from slab_messages(
                            certain.popleft(), self._settings.max_message_bytes
                        )
            yield pb.AttentionResponse(
                result=_fusion_result(grid, fusion, time.monotonic() - began)
            )

    def _task(
        self,
        asked: pb.ScoreCaseRequest | pb.StreamCaseRequest | pb.AttendVolumeHeader,
        organs: Iterable[str],
        context: grpc.ServicerContext,
        cancelled: threading.Event | None = None,
    ) -> AttentionTask:
        cancelled = cancelled or cancellation(context)
        checked = read_reading(asked.reading)
        ensemble = self._predictor.server_models().choose(asked.ensemble, tuple(asked.models))
        channels = wanted_organs(tuple(organs), self._scorer.organs(ensemble.voices))
        self._scorer.labels(channels)
        return AttentionTask(
            ensemble.voices,
            checked,
            channels,
            cancelled,
            fusion_spacing_mm=ensemble.fusion_spacing_mm,
            locator=ensemble.locator,
        )

    def _require_small_slices(
        self, geometry: VolumeGeometry, task: AttentionTask, axis: int | None = None
    ) -> None:
        require_small_slices(
            geometry,
            geometry.axis_map.source[2] if axis is None else axis,
            len(task.organs),
            self._settings.max_message_bytes,
        )

    def _grid(self, geometry: VolumeGeometry, task: AttentionTask) -> pb.AttentionResponse:
        return grid_message(geometry, task.organs, self._scorer.labels(task.organs))

    def _slabs(
        self, run: Generator[GridSlab, None, PredictionResult]
    ) -> Generator[pb.AttentionResponse, None, PredictionResult]:
        """Messages of all slabs; the generator returns the result."""
        with closing(run):
            while True:
                try:
                    slab = next(run)
                except StopIteration as end:
                    prediction: PredictionResult = end.value
                    return prediction
                yield from slab_messages(slab, self._settings.max_message_bytes)
                del slab  # freed before the next one is made


def _fusion_result(grid: SoftGrid, fusion: SoftFusion, total_s: float) -> pb.CaseResult:
    prediction = PredictionResult(
        reading=grid.reading,
        organs=fusion.sizes(),
        total_s=total_s,
        service_version=SERVICE_VERSION,
        created_at=datetime.now(UTC),
    )
    return result_message(prediction)
