"""The embedded stack on the real programs: started, broken in every way, mended, and gone."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import psutil
import pytest
import tritonclient.grpc as triton
from atlas_core.catalog import Catalog, extend_organs
from atlas_core.errors import ConfigurationError, NotFound
from atlas_core.model_spec import INPUT_NAME, OUTPUT_NAME, ModelSpec
from atlas_core.organs import read_scheme
from atlas_embedded.settings import ComponentName, EmbeddedSettings
from atlas_embedded.stack import down, logs, running, status, up
from atlas_embedded.triton_environment import find_triton
from atlas_embedded.triton_models import repository_of
from atlas_models.serving import TritonRepository, read_spec
from numpy.typing import NDArray
from onnx import helper, numpy_helper
from prefect_api import ask_prefect
from stack import Stack, free_settings, open_stack
from triton_server import export_tiny_model

pytestmark = pytest.mark.stack

SHARED_MEMORY = Path("/dev/shm")


def regions(settings: EmbeddedSettings) -> set[str]:
    """Shared memory of this stack's Triton."""
    return {path.name for path in SHARED_MEMORY.glob(f"*{settings.stack_id}*")}


def require(condition: Callable[[], bool], what: str, timeout_s: float = 60.0) -> None:
    """Waits until `condition` holds."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"not within {timeout_s} s: {what}"
        time.sleep(0.02)


def window(spec: ModelSpec) -> NDArray[np.float32]:
    random = np.random.default_rng(5)
    return random.normal(40, 120, (1, 1, *reversed(spec.patch))).astype(np.float32)


def infer(stack: Stack, spec: ModelSpec, data: NDArray[np.float32]) -> NDArray[np.uint8]:
    with stack.triton_client() as client:
        tensor = triton.InferInput(INPUT_NAME, list(data.shape), "FP32")
        tensor.set_data_from_numpy(data)
        answer = client.infer(
            spec.name, [tensor], model_version=str(spec.triton_version), client_timeout=30
        ).as_numpy(OUTPUT_NAME)
    assert answer is not None
    return np.asarray(answer)


def server_pid(stack: Stack) -> int:
    pid = stack.status()["triton"].pid
    assert pid is not None
    return pid


def stubs(stack: Stack) -> list[psutil.Process]:
    return psutil.Process(server_pid(stack)).children()


def run_up(settings: EmbeddedSettings) -> subprocess.Popen[str]:
    """`up` in a process of its own, which may be killed."""
    code = (
        "from atlas_embedded.settings import ComponentName, EmbeddedSettings as S\n"
        "from atlas_embedded.stack import up\n"
        "up(S())\n"
    )
    environment = {**os.environ, **settings.environment()}
    return subprocess.Popen(
        [sys.executable, "-c", code], env=environment, stderr=subprocess.PIPE, text=True
    )


@pytest.fixture(scope="module")
def triton_stack(stack_models: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """Triton alone: enough to try everything that can happen to a part."""
    home = tmp_path_factory.mktemp("triton-stack") / "home"
    with open_stack(home, stack_models, ("triton",)) as opened:
        yield opened


@pytest.fixture
def settings(tmp_path: Path) -> Iterator[EmbeddedSettings]:
    """Triton with one model, not yet up; down at the end."""
    export_tiny_model(tmp_path / "models" / "conv_a", "conv_a")
    chosen = free_settings(tmp_path / "home", tmp_path / "models", ("triton",))
    yield chosen
    down(chosen)


def test_models_answer_as_their_graphs_do(triton_stack: Stack, stack_models: Path) -> None:
    for folder in sorted(stack_models.iterdir()):
        spec = read_spec(folder)
        data = window(spec)
        session = onnxruntime.InferenceSession(folder / "model.onnx")
        (expected,) = session.run(None, {INPUT_NAME: data})
        got = infer(triton_stack, spec, data)
        assert got.dtype == np.uint8
        # Two float32 runtimes may fall on either side of a rounding boundary.
        assert np.abs(got.astype(int) - expected.astype(int)).max() <= 1
        assert got.std() > 10


def test_a_batch_is_its_windows(triton_stack: Stack, stack_models: Path) -> None:
    spec = read_spec(stack_models / "conv_a")
    one = window(spec)
    batch = np.concatenate([one, one[:, :, ::-1], np.full_like(one, -1000)])
    together = infer(triton_stack, spec, batch)
    for index in range(3):
        alone = np.ascontiguousarray(batch[index : index + 1])
        answer = infer(triton_stack, spec, alone)
        assert np.array_equal(together[index : index + 1], answer)


def test_status_tells_every_part(triton_stack: Stack) -> None:
    (row,) = status(triton_stack.settings)
    assert (row.name, row.state) == ("triton", "healthy")
    assert row.address == triton_stack.triton_grpc
    assert row.pid in triton_stack.pids("triton")
    assert row.rss_bytes is not None and row.rss_bytes > 30 << 20
    assert row.uptime_s is not None and row.uptime_s >= 0
    for model in ("conv_a@0", "conv_b@0", "conv_c@0"):
        assert model in row.detail
    assert "openvino f32" in row.detail
    assert json.loads(row.model_dump_json())["state"] == "healthy"


def test_up_again_leaves_a_healthy_stack_alone(triton_stack: Stack) -> None:
    before = triton_stack.pids()
    up(triton_stack.settings)
    assert triton_stack.pids() == before


def test_everything_listens_on_this_machine_only(triton_stack: Stack) -> None:
    given = triton_stack.settings
    connections = psutil.Process(server_pid(triton_stack)).net_connections()
    listening = [c for c in connections if c.status == psutil.CONN_LISTEN]
    assert {c.laddr.port for c in listening} == {given.triton_grpc_port}
    # gRPC listens on an IPv6 socket; the address is the IPv4 one all the same.
    assert {c.laddr.ip.removeprefix("::ffff:") for c in listening} == {"127.0.0.1"}


def test_killed_server_is_started_again(triton_stack: Stack) -> None:
    before = triton_stack.pids()
    triton_stack.kill("triton")
    assert triton_stack.status()["triton"].state == "died"
    triton_stack.restart()
    assert triton_stack.status()["triton"].state == "healthy"
    assert not before & triton_stack.pids()
    assert len(regions(triton_stack.settings)) == 3  # one per model: nothing of the dead server


def test_killed_model_process_is_seen_and_mended(triton_stack: Stack) -> None:
    server = server_pid(triton_stack)
    victim = stubs(triton_stack)[0]
    victim.kill()
    require(lambda: victim.status() == psutil.STATUS_ZOMBIE, "the process ended")
    row = triton_stack.status()["triton"]
    assert row.state == "unhealthy"
    assert "does not answer" in row.detail
    triton_stack.restart()
    assert triton_stack.status()["triton"].state == "healthy"
    assert server_pid(triton_stack) == server  # the other models were never out of service
    assert len(regions(triton_stack.settings)) == 3


def test_lost_record_and_unloaded_model_are_no_obstacle(triton_stack: Stack) -> None:
    before = triton_stack.pids()
    (triton_stack.settings.run / "triton.json").unlink()
    assert "left" in triton_stack.status()["triton"].detail
    triton_stack.restart()
    assert not before & triton_stack.pids()
    with triton_stack.triton_client() as client:
        client.unload_model("conv_b")
        require(lambda: not client.is_model_ready("conv_b"), "conv_b is unloaded")
    assert triton_stack.status()["triton"].state == "unhealthy"
    triton_stack.restart()
    assert triton_stack.status()["triton"].state == "healthy"


def test_other_settings_reach_a_running_stack(triton_stack: Stack) -> None:
    before = server_pid(triton_stack)
    other = triton_stack.settings.model_copy(update={"model_runtime": "onnxruntime"})
    assert up(other)[0].detail == "conv_a@0, conv_b@0, conv_c@0 by onnxruntime f32"
    assert server_pid(triton_stack) == before  # models are loaded again, the server stays
    up(triton_stack.settings)


def test_models_share_the_cores(triton_stack: Stack) -> None:
    with triton_stack.triton_client() as client:
        config = client.get_model_config("conv_a").config
    share = int(config.parameters["atlasloop.threads"].string_value)
    cores = len(os.sched_getaffinity(0))
    assert 3 * (share - 1) < cores <= 3 * share


def test_two_ups_at_once_start_one_stack(settings: EmbeddedSettings) -> None:
    both = [run_up(settings), run_up(settings)]
    for process in both:
        _, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors
    servers = [p for p in psutil.process_iter() if is_server_of(p, settings)]
    assert len(servers) == 1
    assert status(settings)[0].state == "healthy"


def test_up_that_is_killed_halfway_is_taken_up_by_the_next(settings: EmbeddedSettings) -> None:
    first = run_up(settings)
    require(lambda: any(is_server_of(p, settings) for p in psutil.process_iter()), "a server")
    first.kill()
    first.communicate()
    up(settings)
    assert status(settings)[0].state == "healthy"
    assert len([p for p in psutil.process_iter() if is_server_of(p, settings)]) == 1


def test_hung_server_is_replaced(settings: EmbeddedSettings) -> None:
    up(settings)
    stack = Stack(settings)
    pid = server_pid(stack)
    os.kill(pid, signal.SIGSTOP)
    # A process younger than the first of these is waited for: it may only be starting.
    up(settings.model_copy(update={"start_timeout_s": 12.0, "stop_timeout_s": 1.0}))
    assert server_pid(stack) != pid
    assert stack.status()["triton"].state == "healthy"


def test_down_leaves_nothing(settings: EmbeddedSettings) -> None:
    up(settings)
    ours = Stack(settings).pids()
    assert len(ours) == 2  # the server, and a process for the model
    assert down(settings) == ("triton",)
    assert not [pid for pid in ours if psutil.pid_exists(pid)]
    assert not Stack(settings).pids()
    assert not regions(settings)
    assert down(settings) == ()
    assert status(settings)[0].state == "stopped"


def test_down_ends_what_crashes_left(settings: EmbeddedSettings) -> None:
    up(settings)
    stack = Stack(settings)
    children = stubs(stack)
    for child in children:  # they would notice that their server is gone, and end by themselves
        child.suspend()
    stack.kill("triton")
    down(settings)
    assert not stack.pids()
    assert not regions(settings)


def test_processes_are_found_even_without_the_home(settings: EmbeddedSettings) -> None:
    up(settings)
    shutil.rmtree(settings.home)
    down(settings)
    assert not Stack(settings).pids()
    assert not regions(settings)


def test_foreign_process_under_a_recorded_id_is_left_alone(settings: EmbeddedSettings) -> None:
    up(settings)
    record = settings.run / "triton.json"
    content = json.loads(record.read_text())
    with subprocess.Popen(["sleep", "600"]) as stranger:
        record.write_text(json.dumps({**content, "pid": stranger.pid}))
        assert status(settings)[0].state == "died"
        down(settings)
        assert stranger.poll() is None
        stranger.kill()
    assert not Stack(settings).pids()


def test_taken_port_is_a_clear_error_and_starts_nothing(settings: EmbeddedSettings) -> None:
    taken = socket.create_server(("127.0.0.1", settings.triton_grpc_port))
    with taken, pytest.raises(ConfigurationError) as caught:
        up(settings)
    message = str(caught.value)
    assert str(settings.triton_grpc_port) in message
    assert f"(pid {os.getpid()})" in message
    assert "ATLASLOOP_TRITON_GRPC_PORT" in message
    assert not Stack(settings).pids()


def test_broken_version_leaves_the_old_one_in_service(
    settings: EmbeddedSettings, tmp_path: Path
) -> None:
    up(settings)
    before = server_pid(Stack(settings))
    spec = read_spec(settings.models_dir / "conv_a")
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "model.onnx").write_bytes(b"no graph")
    worse = spec.model_copy(
        update={"version": 1, "sha256": hashlib.sha256(b"no graph").hexdigest()}
    )
    (broken / "model.json").write_text(worse.model_dump_json())
    repository: TritonRepository = repository_of(settings)
    repository.install(broken)
    with pytest.raises(ConfigurationError, match="conv_a"):
        up(settings)
    assert server_pid(Stack(settings)) == before
    assert infer(Stack(settings), spec, window(spec)).any()
    repository.remove("conv_a", 1)
    up(settings)
    assert status(settings)[0].state == "healthy"


def test_new_version_comes_into_service_beside_the_old_one(
    settings: EmbeddedSettings, tmp_path: Path
) -> None:
    up(settings)
    before = server_pid(Stack(settings))
    spec = export_tiny_model(tmp_path / "newer", "conv_a", version=1, seed=9)
    repository_of(settings).install(tmp_path / "newer")
    assert "conv_a@0, conv_a@1" in up(settings)[0].detail
    assert server_pid(Stack(settings)) == before
    assert infer(Stack(settings), spec, window(spec)).any()


def test_damaged_cache_of_compiled_models_only_costs_time(settings: EmbeddedSettings) -> None:
    up(settings)
    down(settings)
    blobs = [path for path in settings.compiled_models.rglob("*") if path.is_file()]
    assert blobs
    for blob in blobs:
        blob.write_bytes(blob.read_bytes()[:100])
    assert "openvino f32" in up(settings)[0].detail


def test_graph_that_openvino_cannot_run_falls_back_and_says_so(settings: EmbeddedSettings) -> None:
    folder = settings.models_dir / "conv_a"
    graph = onnx.load(folder / "model.onnx")
    # The determinant of the identity is one: nothing changes, but OpenVINO does not know `Det`.
    graph.graph.initializer.append(numpy_helper.from_array(np.eye(2, dtype=np.float32), "identity"))
    graph.graph.node[0].input[0] = "scaled_ct"
    graph.graph.node.insert(0, helper.make_node("Mul", [INPUT_NAME, "one"], ["scaled_ct"]))
    graph.graph.node.insert(0, helper.make_node("Det", ["identity"], ["one"]))
    content = graph.SerializeToString()
    plain = read_spec(folder)
    spec = plain.model_copy(update={"sha256": hashlib.sha256(content).hexdigest()})
    (folder / "model.onnx").write_bytes(content)
    (folder / "model.json").write_text(spec.model_dump_json())
    assert up(settings)[0].detail == "conv_a@0 by onnxruntime f32"
    assert infer(Stack(settings), spec, window(spec)).any()
    assert any("openvino cannot run" in line for line in logs(settings, "triton", lines=1000))


def test_running_stops_only_what_it_started(settings: EmbeddedSettings) -> None:
    with running(settings):
        assert status(settings)[0].state == "healthy"
        with running(settings):
            pass
        assert status(settings)[0].state == "healthy"
    assert not Stack(settings).pids()


def test_status_shows_why_the_review_service_is_not_ready_and_up_mends_it(tmp_path: Path) -> None:
    with open_stack(tmp_path / "home", tmp_path / "models", ("review",)) as stack:
        with Catalog.open(stack.settings.catalog_url) as catalog:
            extend_organs(catalog, read_scheme("abdomen_atlas_1_1"))
        row = stack.status()["review"]
        assert row.state != "healthy"
        assert "the atlas and the review service have different organs" in row.detail
        assert "`atlasloop up` does" in row.detail
        stack.restart()
        assert stack.status()["review"].state == "healthy"


def unread(stack: Stack, command: str) -> int:
    """Exit status of a command whose reader is gone before its first line."""
    with subprocess.Popen(
        [sys.executable, "-m", "atlas_flows.cli", command],
        env=stack.environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    ) as ran:
        assert ran.stdout is not None
        ran.stdout.close()
        return ran.wait(timeout=300)


def test_a_stack_is_started_and_stopped_whole_although_nobody_reads(tmp_path: Path) -> None:
    stack = Stack(free_settings(tmp_path / "home", tmp_path / "models", ("review", "prefect")))
    try:
        assert unread(stack, "up") == 0
        assert {row.state for row in stack.status().values()} == {"healthy"}
        assert unread(stack, "down") == 0
        assert not stack.pids()
    finally:
        down(stack.settings)


def test_logs_are_kept_over_a_restart(settings: EmbeddedSettings) -> None:
    with pytest.raises(NotFound, match="never started"):
        list(logs(settings, "triton"))
    up(settings)
    assert any("conv_a 1 runs by openvino" in line for line in logs(settings, "triton", lines=500))
    assert len(list(logs(settings, "triton", lines=3))) == 3
    Stack(settings).kill("triton")
    up(settings)
    assert (settings.run / "triton.log.1").stat().st_size > 0


def test_missing_environment_names_the_command_that_makes_it(settings: EmbeddedSettings) -> None:
    missing = settings.model_copy(update={"triton_environment": settings.home / "nowhere"})
    with pytest.raises(ConfigurationError, match="make setup"):
        up(missing)


def test_numpy_that_answers_zeros_is_refused(tmp_path: Path) -> None:
    # This very environment has numpy 2 and no server.
    with pytest.raises(ConfigurationError, match=r"make setup"):
        find_triton(Path(sys.prefix))


def test_no_model_is_a_clear_error(settings: EmbeddedSettings, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="ATLASLOOP_MODELS_DIR"):
        up(settings.model_copy(update={"models_dir": tmp_path / "nothing"}))
    assert not Stack(settings).pids()


def is_server_of(process: psutil.Process, settings: EmbeddedSettings) -> bool:
    try:
        return f"--grpc-port={settings.triton_grpc_port}" in process.cmdline()
    except psutil.Error:
        return False


@pytest.fixture(scope="module")
def whole_stack(stack: Stack) -> Iterator[Stack]:
    """The stack of the session with all its parts; what is added here stops here."""
    parts: tuple[ComponentName, ...] = ("triton", "attention", "prefect", "flows")
    settings = stack.settings.model_copy(update={"components": parts})
    with running(settings):
        yield Stack(settings)


def test_prefect_server_lets_browsers_talk_to_nobody_else(whole_stack: Stack) -> None:
    with urllib.request.urlopen(f"{whole_stack.settings.prefect_url}/") as page:
        policy = page.headers["Content-Security-Policy"]
    assert policy.startswith("connect-src 'self'")
    assert "amplitude" not in policy
    said = ask_prefect(whole_stack.settings, "/admin/settings")
    assert said["server"]["analytics_enabled"] is False


def test_flow_is_served(whole_stack: Stack) -> None:
    assert "score" in whole_stack.status()["flows"].detail


@pytest.mark.parametrize("name", ["flows", "prefect", "attention", "triton"])
def test_killed_part_comes_back_and_the_services_stay(
    whole_stack: Stack, name: ComponentName
) -> None:
    before = {part: row.pid for part, row in whole_stack.status().items()}
    whole_stack.kill(name)
    assert whole_stack.status()[name].state == "died"
    whole_stack.restart()
    after = whole_stack.status()
    assert {row.state for row in after.values()} == {"healthy"}
    changed = {part for part, row in after.items() if row.pid != before[part]}
    # The runner of flows ends by itself when its server is away.
    assert {name} <= changed <= {name, "flows"}


def test_all_parts_killed_at_once_come_back(whole_stack: Stack) -> None:
    before = whole_stack.pids()
    for pid in before:
        with contextlib.suppress(psutil.NoSuchProcess):
            psutil.Process(pid).kill()
    whole_stack.restart()
    assert {row.state for row in whole_stack.status().values()} == {"healthy"}
    assert not before & whole_stack.pids()
    prefix = f"atlas-triton-{whole_stack.settings.stack_id}-"
    assert len([n for n in regions(whole_stack.settings) if n.startswith(prefix)]) == 3
