"""Triton's model repository: its configuration by Triton's own message type, its files by law."""

from __future__ import annotations

import hashlib
import threading
from pathlib import Path

import pytest
from atlas_core.errors import (
    ConfigurationError,
    Conflict,
    CorruptFile,
    InvalidInput,
    NotFound,
)
from atlas_core.model_spec import INPUT_NAME, OUTPUT_NAME, ModelSpec
from atlas_models.serving import (
    CpuServing,
    GpuServing,
    Serving,
    TritonRepository,
    config_text,
    exported_models,
    model_config,
    specs_in,
)
from google.protobuf import text_format
from hypothesis import given, settings
from hypothesis import strategies as st
from tritonclient.grpc import model_config_pb2 as pb

ORGANS = ("liver", "spleen")
PATCH = (20, 24, 28)


def spec(
    name: str = "unet", version: int = 0, graph: bytes = b"graph", **fields: object
) -> ModelSpec:
    values: dict[str, object] = {
        "name": name,
        "version": version,
        "architecture": "unet",
        "organs": ORGANS,
        "spacing_mm": (1.5, 1.5, 1.5),
        "patch": PATCH,
        "hu_window": (-175.0, 250.0),
        "sha256": hashlib.sha256(graph).hexdigest(),
    }
    return ModelSpec.model_validate(values | fields)


def export(folder: Path, model: ModelSpec, graph: bytes = b"graph") -> Path:
    folder.mkdir(parents=True)
    (folder / "model.onnx").write_bytes(graph)
    (folder / "model.json").write_text(model.model_dump_json())
    return folder


def read_config(root: Path, name: str = "unet") -> pb.ModelConfig:
    return text_format.Parse((root / name / "config.pbtxt").read_text(), pb.ModelConfig())


def everything(root: Path) -> dict[str, bytes]:
    files = {str(p.relative_to(root)): p.read_bytes() for p in root.rglob("*") if p.is_file()}
    files.pop(".lock", None)
    return files


@pytest.mark.parametrize("serving", [CpuServing(), GpuServing()], ids=["cpu", "gpu"])
def test_wire_interface_is_the_same_for_both_targets(serving: Serving) -> None:
    config = model_config([spec()], serving)
    (tensor,), (answer,) = config.input, config.output
    assert (tensor.name, tensor.data_type) == (INPUT_NAME, pb.TYPE_FP32)
    assert list(tensor.dims) == [1, 28, 24, 20]  # z, y, x of a patch given as x, y, z
    assert (answer.name, answer.data_type) == (OUTPUT_NAME, pb.TYPE_UINT8)
    assert list(answer.dims) == [2, 28, 24, 20]
    assert config.max_batch_size == serving.max_batch_size


@settings(deadline=None)  # the first example imports; times are never asserted
@given(
    versions=st.sets(st.integers(0, 500), min_size=1, max_size=5),
    architecture=st.text(min_size=1, max_size=40),
    gpu=st.booleans(),
)
def test_config_text_holds_every_spec_whatever_is_in_it(
    versions: set[int], architecture: str, gpu: bool
) -> None:
    specs = [spec(version=v, architecture=architecture) for v in versions]
    config = model_config(specs, GpuServing() if gpu else CpuServing())
    parsed = text_format.Parse(config_text(config), pb.ModelConfig())
    assert parsed == config
    assert specs_in(parsed) == tuple(sorted(specs, key=lambda s: s.version))
    assert list(parsed.version_policy.specific.versions) == sorted(v + 1 for v in versions)


def test_cpu_runs_the_python_backend_with_its_options(tmp_path: Path) -> None:
    serving = CpuServing(precision="bf16", threads=3, streams=2, cache_dir=tmp_path)
    config = model_config([spec()], serving)
    assert (config.backend, config.platform) == ("python", "")
    (group,) = config.instance_group
    assert (group.kind, group.count) == (pb.ModelInstanceGroup.KIND_CPU, 1)
    assert list(config.dynamic_batching.preferred_batch_size) == [2]
    options = {key: value.string_value for key, value in config.parameters.items()}
    assert options["atlasloop.precision"] == "bf16"
    assert options["atlasloop.threads"] == "3"
    assert options["atlasloop.streams"] == "2"
    assert options["atlasloop.cache_dir"] == str(tmp_path)


def test_gpu_runs_tensorrt_in_half_precision_built_before_it_counts_as_ready() -> None:
    config = model_config([spec()], GpuServing(gpus=(1,), engine_cache_dir=Path("/engines")))
    assert config.platform == "onnxruntime_onnx"
    (group,) = config.instance_group
    assert (group.kind, list(group.gpus)) == (pb.ModelInstanceGroup.KIND_GPU, [1])
    (tensorrt,) = config.optimization.execution_accelerators.gpu_execution_accelerator
    assert tensorrt.name == "tensorrt"
    assert tensorrt.parameters["precision_mode"] == "FP16"
    assert tensorrt.parameters["trt_engine_cache_enable"] == "1"
    assert tensorrt.parameters["trt_engine_cache_path"] == "/engines/unet"
    assert tensorrt.parameters["trt_profile_max_shapes"] == "ct:8x1x28x24x20"
    assert list(config.dynamic_batching.preferred_batch_size) == [8]
    assert [warmup.batch_size for warmup in config.model_warmup] == [1, 8]
    for warmup in config.model_warmup:
        assert list(warmup.inputs[INPUT_NAME].dims) == list(config.input[0].dims)


def test_versions_stand_side_by_side(tmp_path: Path) -> None:
    repository = TritonRepository(tmp_path / "repository", CpuServing())
    first, second = spec(), spec(version=1, graph=b"finer")
    assert repository.install(export(tmp_path / "a", first)) == first
    repository.install(export(tmp_path / "b", second, b"finer"))
    assert repository.models() == ("unet",)
    assert repository.installed("unet") == (first, second)
    assert (repository.root / "unet" / "2" / "model.onnx").read_bytes() == b"finer"
    assert specs_in(read_config(repository.root)) == (first, second)
    for version in "12":
        folder = repository.root / "unet" / version
        assert {path.name for path in folder.iterdir()} == {"model.onnx", "model.json", "model.py"}


def test_installing_again_changes_nothing(tmp_path: Path) -> None:
    repository = TritonRepository(tmp_path / "repository", CpuServing())
    exported = export(tmp_path / "a", spec())
    repository.install(exported)
    before = everything(repository.root)
    repository.install(exported)
    assert everything(repository.root) == before


def test_configure_brings_an_older_backend_file_up_to_date(tmp_path: Path) -> None:
    repository = TritonRepository(tmp_path / "repository", CpuServing())
    repository.install(export(tmp_path / "a", spec()))
    repository.configure()
    before = everything(repository.root)
    (repository.root / "unet" / "1" / "model.py").write_text("# of an older release")
    repository.configure()
    assert everything(repository.root) == before


def test_configure_brings_a_repository_to_another_target(tmp_path: Path) -> None:
    TritonRepository(tmp_path / "r", CpuServing()).install(export(tmp_path / "a", spec()))
    TritonRepository(tmp_path / "r", GpuServing()).configure()
    assert read_config(tmp_path / "r").platform == "onnxruntime_onnx"


@pytest.mark.parametrize(
    "serving",
    [
        CpuServing(precision="bf16", threads=3, cache_dir=Path("/cache")),
        GpuServing(gpus=(0, 2), max_batch_size=16),
    ],
    ids=["cpu", "gpu"],
)
def test_a_prepared_repository_is_opened_as_it_was_configured(
    serving: Serving, tmp_path: Path
) -> None:
    """Who adds a version need not know how the others are served."""
    TritonRepository(tmp_path / "r", serving).configure()
    opened = TritonRepository.prepared(tmp_path / "r")
    assert opened.serving == serving
    opened.install(export(tmp_path / "a", spec()))
    assert read_config(tmp_path / "r") == model_config([spec()], serving)


def test_a_folder_that_is_no_prepared_repository_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"r is no model repository.*No such file"):
        TritonRepository.prepared(tmp_path / "r")
    TritonRepository(tmp_path / "r", CpuServing()).configure()
    (tmp_path / "r" / ".serving.json").write_text('{"target": "tpu"}')
    with pytest.raises(CorruptFile, match=r"\.serving\.json of the model repository"):
        TritonRepository.prepared(tmp_path / "r")


REFUSED = {
    "a graph that is not the exported one": (CorruptFile, spec(version=1), b"another graph"),
    "another graph under a version in service": (Conflict, spec(graph=b"new"), b"new"),
    "another patch": (InvalidInput, spec(version=1, patch=(8, 8, 8)), b"graph"),
    "other organs": (InvalidInput, spec(version=1, organs=("liver", "aorta")), b"graph"),
}


@pytest.mark.parametrize(("error", "model", "graph"), REFUSED.values(), ids=REFUSED.keys())
def test_what_is_refused_leaves_the_repository_as_it_was(
    tmp_path: Path, error: type[Exception], model: ModelSpec, graph: bytes
) -> None:
    repository = TritonRepository(tmp_path / "repository", CpuServing())
    repository.install(export(tmp_path / "first", spec()))
    before = everything(repository.root)
    with pytest.raises(error, match="unet"):
        repository.install(export(tmp_path / "bad", model, graph))
    assert everything(repository.root) == before


def test_a_folder_without_a_model_is_named(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(NotFound, match="empty"):
        TritonRepository(tmp_path / "repository", CpuServing()).install(tmp_path / "empty")


def test_a_damaged_description_is_refused(tmp_path: Path) -> None:
    exported = export(tmp_path / "a", spec())
    (exported / "model.json").write_text('{"name": "unet"}')
    with pytest.raises(CorruptFile, match="version"):
        TritonRepository(tmp_path / "repository", CpuServing()).install(exported)


def test_removal_is_by_version_and_ends_with_the_model(tmp_path: Path) -> None:
    repository = TritonRepository(tmp_path / "repository", CpuServing())
    repository.install(export(tmp_path / "a", spec()))
    repository.install(export(tmp_path / "b", spec(version=1, graph=b"finer"), b"finer"))
    repository.remove("unet", 0)
    assert [s.version for s in repository.installed("unet")] == [1]
    assert [s.version for s in specs_in(read_config(repository.root))] == [1]
    with pytest.raises(NotFound):
        repository.remove("unet", 0)
    repository.remove("unet", 1)
    assert repository.models() == ()
    assert everything(repository.root) == {}


def test_what_a_killed_installation_left_is_swept(tmp_path: Path) -> None:
    repository = TritonRepository(tmp_path / "repository", CpuServing())
    repository.install(export(tmp_path / "a", spec()))
    repository.configure()
    before = everything(repository.root)
    half = repository.root / ".incoming-killed"
    half.mkdir()
    (half / "model.onnx").write_bytes(b"gra")
    assert repository.models() == ("unet",)
    repository.configure()
    assert everything(repository.root) == before


def test_a_reader_never_sees_a_version_that_is_not_complete(tmp_path: Path) -> None:
    repository = TritonRepository(tmp_path / "repository", CpuServing())
    graph = b"x" * 200_000
    models = [spec(version=v, graph=graph) for v in range(12)]
    folders = [export(tmp_path / f"v{m.version}", m, graph) for m in models]
    repository.install(folders[0])
    broken: list[str] = []
    seen: set[int] = set()
    done = threading.Event()

    def read_as_triton_does() -> None:
        while not done.is_set():
            config = read_config(repository.root)
            for version in config.version_policy.specific.versions:
                seen.add(version)
                if (repository.root / "unet" / str(version) / "model.onnx").read_bytes() != graph:
                    broken.append(f"version {version}")

    reader = threading.Thread(target=read_as_triton_does)
    reader.start()
    # Two writers at once: neither may take the other's version out of the configuration.
    writers = [
        threading.Thread(target=lambda part=part: [repository.install(f) for f in part])
        for part in (folders[1:6], folders[6:])
    ]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    done.set()
    reader.join()
    assert not broken
    assert seen
    assert specs_in(read_config(repository.root)) == tuple(models)


def test_exported_models_are_found_by_their_description(tmp_path: Path) -> None:
    export(tmp_path / "b", spec())
    export(tmp_path / "a", spec())
    (tmp_path / "notes").mkdir()
    assert [path.name for path in exported_models(tmp_path)] == ["a", "b"]
    assert exported_models(tmp_path / "nowhere") == ()


def test_no_version_and_two_models_are_refused() -> None:
    with pytest.raises(InvalidInput):
        model_config([], CpuServing())
    with pytest.raises(InvalidInput):
        model_config([spec(), spec(name="nnunet")], CpuServing())
    with pytest.raises(InvalidInput):
        model_config([spec(), spec(graph=b"other")], CpuServing())


def test_a_new_version_is_staged_beside_the_one_in_service(tmp_path: Path) -> None:
    repository = TritonRepository(tmp_path / "repository", CpuServing())
    for version in range(3):
        graph = b"v%d" % version
        model = spec(version=version, graph=graph)
        folder = export(tmp_path / f"v{version}", model, graph)
        repository.install(folder) if version == 0 else repository.stage(folder)
    assert repository.in_service("unet") == 0
    assert [s.version for s in repository.served("unet")] == [0, 1, 2]
    assert read_config(repository.root).parameters["atlasloop.in_service"].string_value == "1"
    assert repository.put_into_service("unet", 2) == 0
    assert repository.in_service("unet") == 2
    assert [s.version for s in repository.served("unet")] == [0, 2]  # and the way back
    assert [s.version for s in repository.installed("unet")] == [0, 1, 2]
    repository.configure()
    assert (repository.in_service("unet"), len(repository.served("unet"))) == (2, 2)
    repository.remove("unet", 2)
    assert repository.in_service("unet") == 0
    with pytest.raises(NotFound):
        repository.put_into_service("unet", 7)


def test_a_first_version_that_is_staged_serves_nobody(tmp_path: Path) -> None:
    repository = TritonRepository(tmp_path / "repository", CpuServing())
    repository.stage(export(tmp_path / "a", spec()))
    assert repository.in_service("unet") is None
    assert repository.put_into_service("unet", 0) is None
    assert repository.in_service("unet") == 0


def test_a_configuration_of_before_serves_its_newest(tmp_path: Path) -> None:
    repository = TritonRepository(tmp_path / "repository", CpuServing())
    repository.install(export(tmp_path / "a", spec()))
    repository.install(export(tmp_path / "b", spec(version=1, graph=b"finer"), b"finer"))
    config = read_config(repository.root)
    del config.parameters["atlasloop.in_service"]
    (repository.root / "unet" / "config.pbtxt").write_text(config_text(config))
    assert repository.in_service("unet") == 1
    (repository.root / "unet" / "config.pbtxt").write_text("parameters {")
    with pytest.raises(CorruptFile, match=r"config\.pbtxt of model unet"):
        repository.in_service("unet")
