"""The attention service over real sockets, against a real Triton."""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import onnxruntime
import pytest
from atlas_attention.fusion import ATTENTION_SCALE, fuse
from atlas_attention.scoring import attend
from atlas_attention.server import AttentionServer
from atlas_attention.server.server import SERVICE
from atlas_attention.settings import AttentionSettings
from atlas_attention.triton.shared_memory import SHARED_MEMORY
from atlas_core.geometry import VolumeGeometry
from atlas_core.imaging import Volume, open_slabs, read_cropped, read_header, read_volume
from atlas_core.model_spec import ModelSpec, ensemble_key
from atlas_core.organs import ABDOMEN_ATLAS
from atlas_core.records import Reading
from atlas_core.store import CaseStore
from atlasloop.answers import AttentionMaps
from atlasloop.attention.v1 import attention_pb2 as pb
from atlasloop.attention.v1 import attention_pb2_grpc as stubs
from atlasloop.client import AttentionClient, AttentionServiceError
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from numpy.typing import NDArray
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span
from ports import free_port
from triton_server import TritonServer

WAIT_S = 60.0
CASE = "Phantom_0123456789ab"
ENSEMBLE = ("conv_a@0", "conv_b@1", "conv_c@0")

AXES = {
    "RAS": np.diag([2.0, 2.2, 2.6, 1.0]),
    "LPS": np.diag([-2.0, -2.2, 2.6, 1.0]),
    # The file's first axis runs from superior to inferior.
    "IPR": np.array([[0, 0, 2.6, 0], [0, -2.2, 0, 0], [-2.0, 0, 0, 0], [0, 0, 0, 1.0]]),
}


def ct(shape: tuple[int, int, int] = (44, 40, 36)) -> NDArray[np.int16]:
    """A textured body in air, ``[i, j, k]``."""
    i, j, k = np.meshgrid(*(np.linspace(-1, 1, n) for n in shape), indexing="ij")
    texture = np.random.default_rng(5).normal(0, 70, shape)
    blob = 120 * np.exp(-4 * ((i - 0.2) ** 2 + j**2 + k**2))
    return np.where(i**2 + j**2 + 0.5 * k**2 < 0.8, 10 + blob + texture, -1000).astype(np.int16)


@dataclass(eq=False)
class InProcess:
    """The same graphs, run by ONNX Runtime in this process."""

    folders: dict[str, Path]

    def submit(self, spec: ModelSpec, window: NDArray[np.float32]) -> Future[NDArray[np.uint8]]:
        answer: Future[NDArray[np.uint8]] = Future()
        answer.set_result(self._session(spec).run(["soft"], {"ct": window[None, None]})[0][0])
        return answer

    @cache  # noqa: B019  one object in a test
    def _session(self, spec: ModelSpec) -> onnxruntime.InferenceSession:
        path = self.folders[f"{spec.name}@{spec.version}"] / "model.onnx"
        return onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])


def specs(folders: dict[str, Path], names: Sequence[str] = ENSEMBLE) -> tuple[ModelSpec, ...]:
    return tuple(
        ModelSpec.model_validate_json((folders[name] / "model.json").read_bytes()) for name in names
    )


def expected(
    path: Path, folders: dict[str, Path], reading: Reading
) -> tuple[NDArray[np.uint8], NDArray[np.uint8], dict[str, float]]:
    """Attention, label and sizes of the CT at `path`, without service and Triton."""
    with open_slabs(path) as source:
        run = attend(
            source, specs(folders), InProcess(folders), reading, overlap=0.5, scheme=ABDOMEN_ATLAS
        )
        shape = source.geometry.shape
        attention = np.zeros((len(specs(folders)[0].organs), *shape), np.uint8)
        label = np.zeros(shape, np.uint8)
        for slab in run:
            index = (slice(None),) * slab.axis + (slice(slab.start, slab.stop),)
            attention[(slice(None), *index)] = slab.attention
            label[index] = slab.label
        sizes = {organ.organ: organ.attention_voxels for organ in run.summary.organs}
    return attention, label, sizes


@dataclass
class Service:
    """A running service and how to reach it."""

    settings: AttentionSettings
    server: AttentionServer

    @property
    def store(self) -> CaseStore:
        return CaseStore(self.settings.store)

    def client(self, **options: Any) -> AttentionClient:
        return AttentionClient(self.settings.listen, **{"timeout_s": WAIT_S, **options})

    def metric(self, name: str) -> float:
        """Sum of a metric over its labels."""
        url = f"http://{self.settings.metrics_listen}/metrics"
        lines = urllib.request.urlopen(url).read().decode().splitlines()
        name = f"atlasloop_attention_{name}"
        return sum(
            float(line.split()[-1]) for line in lines if line.split("{")[0].split()[0] == name
        )


OpenService = Callable[..., Service]


@pytest.fixture
def open_service(tmp_path: Path) -> Iterator[OpenService]:
    """Services in this process that are closed at the end, and must leave nothing behind."""
    with contextlib.ExitStack() as services:

        def make(triton: TritonServer, **settings: Any) -> Service:
            configured = AttentionSettings(
                **{
                    "listen": f"127.0.0.1:{free_port()}",
                    "metrics_listen": f"127.0.0.1:{free_port()}",
                    "triton": triton.address,
                    "store": tmp_path / "store",
                    "stop_grace_s": 0.0,
                    "health_interval_s": 1.0,
                    **settings,
                }
            )
            return Service(configured, services.enter_context(AttentionServer(configured)))

        yield make
    assert list(SHARED_MEMORY.glob(f"atlasloop-{os.getpid()}-*")) == []


def add_case(store: CaseStore, affine: NDArray[np.float64], case_id: str = CASE) -> Volume:
    voxels = ct()
    volume = Volume(voxels, VolumeGeometry.from_array(voxels.shape, affine))
    store.write_ct(case_id, volume)
    return volume


def until(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.02)


def refusal(call: Callable[[], object]) -> AttentionServiceError:
    with pytest.raises(AttentionServiceError) as caught:
        call()
    return caught.value


# What comes out


@pytest.mark.parametrize("reading", list(Reading))
@pytest.mark.parametrize("axes", AXES)
def test_score_stream_and_upload_give_what_the_pipeline_gives(
    axes: str,
    reading: Reading,
    triton_server: TritonServer,
    tiny_models: dict[str, Path],
    open_service: OpenService,
) -> None:
    service = open_service(triton_server)
    volume = add_case(service.store, AXES[axes])
    attention, label, sizes = expected(service.store.ct_path(CASE), tiny_models, reading)
    assert attention.any() and label.any()

    with service.client() as client:
        predicted = client.stream_case(CASE, reading.value).collect()
        progress: list[tuple[int, int]] = []
        scored = client.score_case(
            CASE, reading.value, on_progress=lambda done, total: progress.append((done, total))
        )
        asked = service.metric("inferences_total")
        streamed = client.stream_case(CASE, reading.value).collect()
        assert service.metric("inferences_total") == asked, "what is stored asks no model"
        last_first = client.stream_case(CASE, reading.value, organs=list(sizes)[::-1]).collect()
        sent = client.attend_volume(volume.voxels, volume.geometry.matrix, reading.value)

    assert np.array_equal(last_first.attention, attention[::-1])
    for maps in (predicted, streamed, sent):
        assert np.array_equal(maps.attention, attention)
        assert np.array_equal(maps.label, label)
        assert np.allclose(maps.grid.affine, volume.geometry.matrix)  # float32 in the file
    for result in (scored, predicted.result, streamed.result, sent.result):
        assert {organ.organ: organ.attention_voxels for organ in result.organs} == sizes
        assert result.ensemble == ensemble_key([spec.ref for spec in specs(tiny_models)])
        assert [f"{m.name}@{m.version}" for m in result.models] == list(ENSEMBLE)
    assert (scored.case_id, streamed.result.case_id, sent.result.case_id) == (CASE, CASE, "")
    assert scored.timing.windows + scored.timing.windows_air == progress[-1][1]
    assert progress == sorted(progress) and progress[-1][0] == progress[-1][1]
    _check_stored(service, reading, attention, label, sizes)


def _check_stored(
    service: Service,
    reading: Reading,
    attention: NDArray[np.uint8],
    label: NDArray[np.uint8],
    sizes: dict[str, float],
) -> None:
    """Every number can be verified from the files."""
    folder = next((service.store.root / "cases" / CASE / "predictions" / reading.value).iterdir())
    geometry = read_header(service.store.ct_path(CASE)).geometry
    stored_label = read_volume(folder / "pseudo_label.nii.gz")
    assert stored_label.geometry.same_grid(geometry)
    assert np.array_equal(stored_label.voxels, label)
    record = json.loads((folder / "result.json").read_text())
    for channel, organ in enumerate(record["organs"]):
        path = folder / "attention" / f"{organ['organ']}.nii.gz"
        assert path.is_file() == attention[channel].any() == (organ["attention_sha256"] is not None)
        size = 0.0
        if path.is_file():
            assert hashlib.sha256(path.read_bytes()).hexdigest() == organ["attention_sha256"]
            assert read_header(path).dtype == np.uint8
            assert np.array_equal(read_cropped(path, geometry), attention[channel])
            cropped = read_volume(path).voxels
            size = float(cropped.sum(dtype=np.float64))
            if reading is Reading.RELEASED:
                size = float(np.count_nonzero(cropped))
        assert organ["attention_voxels"] == pytest.approx(size, rel=1e-5)
        assert organ["attention_voxels"] == sizes[organ["organ"]]
        assert organ["pseudo_label_voxels"] == np.count_nonzero(label == organ["label"])
        assert organ["pseudo_label_ml"] == pytest.approx(
            organ["pseudo_label_voxels"] * geometry.voxel_ml
        )
    members = service.store.member_label_paths(CASE, reading, record["ensemble"], record["number"])
    assert len(members) == len(record["member_labels"]) == len(record["models"])
    for path, sha256 in zip(
        members.values(), dict(sorted(record["member_labels"].items())).values(), strict=True
    ):
        assert hashlib.sha256(path.read_bytes()).hexdigest() == sha256
        assert set(np.unique(read_cropped(path, geometry))) <= {0, *ABDOMEN_ATLAS.labels}


def test_plain_tensors_give_the_bytes_of_shared_memory(
    triton_server: TritonServer, open_service: OpenService
) -> None:
    answers: list[AttentionMaps] = []
    for transport in ("system", "none"):
        service = open_service(triton_server, shared_memory=transport)
        with service.client() as client:
            answers.append(client.attend_volume(ct(), AXES["LPS"]))
            assert (service.metric("shared_memory_regions") > 0) == (transport == "system")
    assert np.array_equal(answers[0].attention, answers[1].attention)
    assert np.array_equal(answers[0].label, answers[1].label)


@pytest.mark.parametrize("dtype", ["int16", "int32", "float32", "uint8"])
def test_every_voxel_type_and_scaling_means_the_same_ct(
    dtype: str, triton_server: TritonServer, open_service: OpenService
) -> None:
    voxels = np.clip(ct(), -200, 310)
    with open_service(triton_server).client() as client:
        plain = client.attend_volume(voxels.astype(np.int16), AXES["RAS"])
        stored = ((voxels + 200) // 2).astype(dtype)
        scaled = client.attend_volume(stored, AXES["RAS"], slope=2.0, intercept=-200.0)
        exact = client.attend_volume((voxels + 200) // 2 * 2 - 200, AXES["RAS"])
    assert np.array_equal(scaled.attention, exact.attention)
    assert plain.attention.shape == exact.attention.shape


def test_chosen_models_and_organs(triton_server: TritonServer, open_service: OpenService) -> None:
    service = open_service(triton_server)
    with service.client() as client:
        all_organs = client.attend_volume(ct(), AXES["RAS"], models=["conv_b@0", "conv_a"])
        some = client.attend_volume(
            ct(), AXES["RAS"], models=["conv_a", "conv_b@0"], organs=["pancreas", "liver"]
        )
        newest = client.attend_volume(ct(), AXES["RAS"], models=["conv_b", "conv_a"])
        assert some.grid.organs == ("pancreas", "liver")
        assert some.grid.labels == (6, 5)
        assert np.array_equal(some.attention, all_organs.attention[[2, 0]])
        assert np.array_equal(some.label, all_organs.label)
        assert not np.array_equal(newest.attention, all_organs.attention)
        real = some.attention_of("liver")
        assert real.dtype == np.float32
        assert real.max() <= 255 / 136

        assert (
            refusal(
                lambda: client.attend_volume(ct(), AXES["RAS"], organs=["liver", "liver"])
            ).status
            is grpc.StatusCode.INVALID_ARGUMENT
        )
        assert (
            refusal(lambda: client.attend_volume(ct(), AXES["RAS"], models=["conv_d"])).status
            is grpc.StatusCode.NOT_FOUND
        )


def test_info_names_models_organs_and_limits(
    triton_server: TritonServer, open_service: OpenService
) -> None:
    with open_service(triton_server, max_calls=3).client() as client:
        info = client.info()
    assert [f"{m.name}@{m.version}" for m in info.models] == list(ENSEMBLE)
    assert [f"{m.name}@{m.version}" for m in info.older_models] == ["conv_b@0"]
    assert info.organs == ("liver", "spleen", "pancreas")
    assert info.labels == (5, 8, 6)
    assert info.readings == ("paper", "released", "opened")
    assert info.limits.max_calls == 3
    assert info.attention_scale == ATTENTION_SCALE


@pytest.mark.parametrize("reading", list(Reading))
def test_soft_predictions_are_fused_as_in_process(
    reading: Reading, triton_server: TritonServer, open_service: OpenService
) -> None:
    random = np.random.default_rng(1)
    soft = np.repeat(random.integers(0, 256, (3, 2, 5, 1, 1)), 8, axis=2).astype(np.uint8)
    soft = np.ascontiguousarray(np.broadcast_to(soft, (3, 2, 40, 12, 14)))  # [..., z, y, x]
    whole = fuse(soft, reading)
    with open_service(triton_server).client() as client:
        for sent in (soft, (soft / np.float32(255)).astype(np.float32)):
            maps = client.fuse(
                sent.transpose(0, 1, 4, 3, 2), AXES["RAS"], ("liver", "spleen"), reading.value
            )
            assert np.array_equal(maps.attention, whole.attention.transpose(0, 3, 2, 1))
            named = np.array([0, 5, 8], np.uint8)[whole.label]
            assert np.array_equal(maps.label, named.transpose(2, 1, 0))
        sent_wrong = soft.astype(np.float32)
        error = refusal(lambda: client.fuse(sent_wrong, AXES["RAS"], ("liver", "spleen")))
    assert error.status is grpc.StatusCode.INVALID_ARGUMENT
    assert "no probability" in error.message


def test_a_client_with_default_limits_takes_every_message(
    triton_server: TritonServer, open_service: OpenService
) -> None:
    """Slices of 1 MB with all channels: a slab of 16 is cut."""
    shape = (512, 512, 20)
    settings = open_service(triton_server).settings
    soft = np.zeros((1, 3, *shape[::-1]), np.uint8)
    soft[:, :, :, 100:200] = 77
    header = pb.FuseHeader(
        grid=pb.VolumeGrid(shape=shape, affine=AXES["RAS"].ravel()),
        models=1,
        organs=["liver", "spleen", "pancreas"],
        voxel_type=pb.VOXEL_TYPE_UINT8,
    )
    slab = pb.SoftSlab(start=0, stop=20, data=soft.tobytes())
    requests = [
        pb.FuseSoftPredictionsRequest(header=header),
        pb.FuseSoftPredictionsRequest(slab=slab),
    ]
    with grpc.insecure_channel(settings.listen) as channel:
        answers = list(
            stubs.AttentionServiceStub(channel).FuseSoftPredictions(iter(requests), timeout=WAIT_S)
        )
    sizes = [len(answer.slab.attention) for answer in answers if answer.HasField("slab")]
    assert sum(sizes) == 3 * np.prod(shape)
    assert len(sizes) > 1


# Scoring once


def test_a_case_is_scored_once(triton_server: TritonServer, open_service: OpenService) -> None:
    service = open_service(triton_server)
    add_case(service.store, AXES["LPS"])
    with service.client() as client, ThreadPoolExecutor(4) as pool:
        results = list(pool.map(lambda _: client.score_case(CASE), range(4)))
        again = client.score_case(CASE)
        info = client.info()
    assert sorted(result.already_scored for result in results) == [False, True, True, True]
    assert again.already_scored
    assert {result.organs for result in results} == {again.organs}
    predictions = again.timing.windows
    # The health watch tries idle models too, one window each.
    extra = service.metric("inferences_total") - predictions
    assert extra < predictions or extra <= 10 * len(info.models)
    assert _incoming(service) == []


def _incoming(service: Service) -> list[Path]:
    folder = service.store.root / ".incoming"
    return list(folder.iterdir()) if folder.is_dir() else []


def test_two_services_on_one_store_do_not_clash(
    triton_server: TritonServer, open_service: OpenService
) -> None:
    services = [open_service(triton_server), open_service(triton_server)]
    add_case(services[0].store, AXES["RAS"])
    with services[0].client() as one, services[1].client() as other, ThreadPoolExecutor(2) as pool:
        results = list(pool.map(lambda client: client.score_case(CASE), (one, other)))
    assert results[0].organs == results[1].organs
    assert _incoming(services[0]) == []


def test_unknown_and_broken_cases(triton_server: TritonServer, open_service: OpenService) -> None:
    service = open_service(triton_server)
    add_case(service.store, AXES["RAS"], "Broken_0123456789ab")
    path = service.store.ct_path("Broken_0123456789ab")
    path.write_bytes(path.read_bytes()[:-2000])
    with service.client() as client:
        for call in (client.score_case, lambda case: client.stream_case(case).collect()):
            missing = refusal(lambda call=call: call("Missing_0123456789ab"))  # type: ignore[misc]
            assert missing.status is grpc.StatusCode.NOT_FOUND
            assert "Missing_0123456789ab" in missing.message
            broken = refusal(lambda call=call: call("Broken_0123456789ab"))  # type: ignore[misc]
            assert broken.status is grpc.StatusCode.DATA_LOSS
            assert "Broken_0123456789ab" in broken.message
            assert str(path.parent) not in broken.message
    assert _incoming(service) == []


# Too much, too late, gone


def test_calls_over_the_limit_are_refused_for_now(
    triton_server: TritonServer, open_service: OpenService
) -> None:
    service = open_service(triton_server, max_calls=1, max_waiting=0)
    hold: queue.SimpleQueue[pb.AttendVolumeRequest | None] = queue.SimpleQueue()
    grid = pb.VolumeGrid(shape=ct().shape, affine=AXES["RAS"].ravel())
    hold.put(
        pb.AttendVolumeRequest(
            header=pb.AttendVolumeHeader(grid=grid, voxel_type=pb.VOXEL_TYPE_INT16)
        )
    )
    with grpc.insecure_channel(service.settings.listen) as channel, service.client() as client:
        call = stubs.AttentionServiceStub(channel).AttendVolume(iter(hold.get, None))
        assert next(call).HasField("grid")
        error = refusal(lambda: client.attend_volume(ct(), AXES["RAS"]))
        assert error.status is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert error.retryable
        client.info()
        call.cancel()
        hold.put(None)
        until(lambda: service.metric("calls_admitted") == 0, "its buffers are free again")
        client.attend_volume(ct(), AXES["RAS"])


def test_a_deadline_stops_the_work(triton_server: TritonServer, open_service: OpenService) -> None:
    service = open_service(triton_server)
    add_case(service.store, AXES["RAS"])
    with service.client() as client:
        error = refusal(lambda: client.score_case(CASE, timeout_s=0.01))
        assert error.status is grpc.StatusCode.DEADLINE_EXCEEDED
        until(lambda: service.metric("calls_admitted") == 0, "the work has stopped")
        until(lambda: service.metric("windows_in_flight") == 0, "no window is left")
        assert _incoming(service) == []


def test_leaving_early_stops_the_work(
    triton_server: TritonServer, open_service: OpenService
) -> None:
    service = open_service(triton_server, overlap=0.75)
    voxels = np.tile(ct(), (1, 1, 4))
    with service.client() as client:
        with client.stream_volume(voxels, AXES["RAS"]) as stream:
            next(iter(stream))
        until(lambda: service.metric("calls_admitted") == 0, "the work has stopped")
        predicted = service.metric("inferences_total")
        whole = client.attend_volume(voxels, AXES["RAS"]).result.timing.windows
    assert predicted < whole


# Scored again


def test_a_newer_result_is_made_beside_the_stored_one(
    private_triton: TritonServer, open_service: OpenService
) -> None:
    service = open_service(private_triton, overlap=0.75)
    add_case(service.store, AXES["LPS"])

    def files(number: int) -> dict[str, bytes]:
        folder = service.store.prediction_dir(CASE, Reading.PAPER, first.ensemble, number)
        return {path.name: path.read_bytes() for path in folder.rglob("*.nii.gz")}

    with service.client() as client:
        first = client.score_case(CASE)
        kept = files(1)
        with pytest.raises(Interrupted):
            client.score_case(CASE, newer_than=1, on_progress=_interrupt)
        assert client.score_case(CASE) == replace(first, already_scored=True)
        again = client.score_case(CASE, newer_than=1)
        assert (again.number, again.already_scored, again.organs) == (2, False, first.organs)
        assert client.score_case(CASE, newer_than=1) == replace(again, already_scored=True)
        assert files(1) == kept == files(2)
        with client.stream_case(CASE) as stored:
            list(stored)
        assert stored.result.number == 2


class Interrupted(Exception):
    """A caller that does not wait for the end."""


def _interrupt(done: int, total: int) -> None:
    if done:
        raise Interrupted


# Dying parts


def test_a_killed_triton_leaves_nothing_half_written_and_a_retry_completes(
    private_triton: TritonServer, open_service: OpenService
) -> None:
    service = open_service(private_triton, overlap=0.75)
    add_case(service.store, AXES["LPS"])
    add_case(service.store, AXES["LPS"], "Undisturbed_0123456789ab")
    killed = threading.Event()

    def kill(done: int, total: int) -> None:
        if not killed.is_set() and done > 0:
            killed.set()
            private_triton.kill()

    with service.client() as client:
        error = refusal(lambda: client.score_case(CASE, on_progress=kill))
        assert error.status is grpc.StatusCode.UNAVAILABLE
        assert error.retryable
        assert not (service.store.root / "cases" / CASE / "predictions").exists()
        assert _incoming(service) == []

        private_triton.start(["conv_a", "conv_b"])
        until(lambda: _healthy(service) == "SERVING", "the service serves again")
        again = client.score_case(CASE)
        undisturbed = client.score_case("Undisturbed_0123456789ab")
    assert not again.already_scored
    assert again.organs == undisturbed.organs
    folders = [
        service.store.prediction_dir(case, Reading.PAPER, again.ensemble)
        for case in (CASE, "Undisturbed_0123456789ab")
    ]
    files = sorted(path.relative_to(folders[0]) for path in folders[0].rglob("*.nii.gz"))
    assert len(files) == 6  # three maps, two members, the pseudo label
    for file in files:
        assert (folders[0] / file).read_bytes() == (folders[1] / file).read_bytes()


def _healthy(service: Service, name: str = SERVICE) -> str:
    with grpc.insecure_channel(service.settings.listen) as channel:
        request = health_pb2.HealthCheckRequest(service=name)
        answer = health_pb2_grpc.HealthStub(channel).Check(request, timeout=WAIT_S)
    return str(health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status))


def test_health_follows_the_models(private_triton: TritonServer, open_service: OpenService) -> None:
    service = open_service(private_triton)
    until(lambda: _healthy(service) == "SERVING", "it serves")
    assert _healthy(service, "") == "SERVING"
    assert service.metric("serving") == 1
    private_triton.kill()
    until(lambda: _healthy(service) == "NOT_SERVING", "it notices")
    assert _healthy(service, "") == "NOT_SERVING"
    with service.client() as client:
        assert refusal(client.info).status is grpc.StatusCode.UNAVAILABLE
    private_triton.start(["conv_a", "conv_b"])
    until(lambda: _healthy(service) == "SERVING", "it serves again")


def test_reflection_lists_the_services(
    triton_server: TritonServer, open_service: OpenService
) -> None:
    service = open_service(triton_server)
    with grpc.insecure_channel(service.settings.listen) as channel:
        stub = reflection_pb2_grpc.ServerReflectionStub(channel)
        request = reflection_pb2.ServerReflectionRequest(list_services="")
        answer = next(stub.ServerReflectionInfo(iter([request]), timeout=WAIT_S))
    names = {entry.name for entry in answer.list_services_response.service}
    assert {SERVICE, "grpc.health.v1.Health"} <= names


# The process


@contextlib.contextmanager
def process(triton: TritonServer, store: Path, **settings: str) -> Iterator[subprocess.Popen[str]]:
    variables = {
        "LISTEN": f"127.0.0.1:{free_port()}",
        "METRICS_LISTEN": "",
        "TRITON": triton.address,
        "STORE": str(store),
        **settings,
    }
    started = subprocess.Popen(
        [sys.executable, "-m", "atlas_attention"],
        env={**os.environ, **{f"ATLAS_ATTENTION_{k}": v for k, v in variables.items()}},
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        yield started
    finally:
        started.kill()
        started.communicate()


def test_sigterm_stops_it_cleanly_and_logs_are_json(
    triton_server: TritonServer, tmp_path: Path
) -> None:
    address = f"127.0.0.1:{free_port()}"
    with process(triton_server, tmp_path, LISTEN=address) as service:
        with AttentionClient(address) as client:
            until(lambda: _answers(client), "it answers")
            client.attend_volume(ct(), AXES["RAS"])
            assert list(SHARED_MEMORY.glob(f"atlasloop-{service.pid}-*"))
        service.send_signal(signal.SIGTERM)
        _, log = service.communicate(timeout=WAIT_S)
        assert service.returncode == 0, log
        assert list(SHARED_MEMORY.glob(f"atlasloop-{service.pid}-*")) == []
    assert not any(str(service.pid) in name for name in triton_server.shared_regions())
    lines = [json.loads(line) for line in log.splitlines()]
    assert {"time", "level", "logger", "message"} <= set(lines[0])
    assert any(line.get("method") == "AttendVolume" for line in lines)


def _answers(client: AttentionClient) -> bool:
    try:
        client.info(timeout_s=1)
    except AttentionServiceError:
        return False
    return True


def test_regions_of_a_killed_service_are_swept_by_the_next(
    triton_server: TritonServer, tmp_path: Path
) -> None:
    address = f"127.0.0.1:{free_port()}"
    with process(triton_server, tmp_path, LISTEN=address) as first, AttentionClient(address) as it:
        until(lambda: _answers(it), "it answers")
        it.attend_volume(ct(), AXES["RAS"])
        first.send_signal(signal.SIGKILL)
        first.wait(WAIT_S)
    assert any(str(first.pid) in name for name in triton_server.shared_regions())
    address = f"127.0.0.1:{free_port()}"
    with process(triton_server, tmp_path, LISTEN=address), AttentionClient(address) as it:
        until(lambda: _answers(it), "it answers")
        it.attend_volume(ct(), AXES["RAS"])
        assert list(SHARED_MEMORY.glob(f"atlasloop-{first.pid}-*")) == []
        assert not any(str(first.pid) in name for name in triton_server.shared_regions())


@pytest.mark.parametrize("which", ["LISTEN", "METRICS_LISTEN"])
def test_a_taken_port_is_a_clear_error(
    which: str, triton_server: TritonServer, tmp_path: Path, open_service: OpenService
) -> None:
    taken = open_service(triton_server).settings.listen
    with process(triton_server, tmp_path, **{which: taken}) as second:
        _, log = second.communicate(timeout=WAIT_S)
    assert second.returncode == 2, log
    assert taken in log
    assert f"ATLAS_ATTENTION_{which}" in log


def test_an_unsafe_setting_is_a_clear_error(triton_server: TritonServer, tmp_path: Path) -> None:
    with process(triton_server, tmp_path, LISTEN="0.0.0.0:18349") as service:
        _, log = service.communicate(timeout=WAIT_S)
    assert service.returncode == 2, log
    assert "ATLAS_ATTENTION_ALLOW_REMOTE" in log
    assert "Traceback" not in log


class Collector:
    """An OTLP collector over HTTP: keeps the spans that it is sent."""

    def __init__(self) -> None:
        self.spans: list[Span] = []
        kept = self.spans

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                if self.headers.get("Content-Encoding") == "gzip":
                    body = gzip.decompress(body)
                sent = ExportTraceServiceRequest.FromString(body)
                for resource in sent.resource_spans:
                    for scope in resource.scope_spans:
                        kept.extend(scope.spans)
                self.send_response(200)
                self.end_headers()

            def log_message(self, *_: object) -> None:
                """Nothing."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever)
        self._thread.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}/v1/traces"

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def test_traces_show_where_the_time_went_and_nothing_of_the_patient(
    open_service: OpenService, triton_server: TritonServer
) -> None:
    with contextlib.closing(Collector()) as collector:
        service = open_service(triton_server, traces=collector.url)
        volume = add_case(service.store, AXES["LPS"])
        trace_id, parent = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
        with grpc.insecure_channel(service.settings.listen) as channel:
            request = pb.ScoreCaseRequest(case_id=CASE, reading=pb.READING_PAPER)
            metadata = [("traceparent", f"00-{trace_id}-{parent}-01")]
            list(stubs.AttentionServiceStub(channel).ScoreCase(request, metadata=metadata))
        with service.client() as client:
            client.attend_volume(volume.voxels, volume.geometry.matrix)
            refusal(lambda: client.score_case("Nobody_0123456789ab"))
        service.server.close()
    attended = [span for span in collector.spans if span.name == "attend"]
    calls = [span for span in collector.spans if span.kind == Span.SPAN_KIND_SERVER]
    asked = next(span for span in calls if span.trace_id.hex() == trace_id)
    assert asked.name == "ScoreCase" and asked.parent_span_id.hex() == parent
    inside = [span for span in attended if span.parent_span_id == asked.span_id]
    assert [span.trace_id.hex() for span in inside] == [trace_id]
    told = {pair.key: pair.value for pair in inside[0].attributes}
    assert told["atlasloop.windows"].int_value > 0
    assert told["atlasloop.predict_s"].double_value > 0
    assert asked.start_time_unix_nano <= inside[0].start_time_unix_nano
    assert inside[0].end_time_unix_nano <= asked.end_time_unix_nano
    upload = next(span for span in calls if span.name == "AttendVolume")
    assert {s.name for s in collector.spans if s.parent_span_id == upload.span_id} == {
        "receive",
        "attend",
    }
    statuses = {
        pair.value.int_value
        for span in calls
        for pair in span.attributes
        if pair.key == "rpc.grpc.status_code"
    }
    assert statuses == {0, grpc.StatusCode.NOT_FOUND.value[0]}
