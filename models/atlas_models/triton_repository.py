"""Triton's model repository: exported models in, folders and ``config.pbtxt`` out. Needs no torch.

    <root>/<name>/config.pbtxt
    <root>/<name>/<t + 1>/model.onnx     the graph
    <root>/<name>/<t + 1>/model.json     its `ModelSpec`
    <root>/<name>/<t + 1>/model.py       the Python backend that runs it on a CPU

Triton may read the repository while it changes: a version folder appears by one rename and only
then does a new ``config.pbtxt``, replaced in one step, name it. Removal goes the other way round.
``config.pbtxt`` carries the `ModelSpec` of every version it serves as the parameter
``atlasloop.spec.<triton version>``, so that a client of Triton learns everything from Triton, and
in ``atlasloop.in_service`` which of them answers when none is asked for. The others are loaded
beside it: a new version until it has proved itself, the last one for a quick way back. Versions
that ``config.pbtxt`` does not name lie on disk only.

One graph, two targets: `CpuServing` runs it by OpenVINO in Triton's Python backend, `GpuServing` by
ONNX Runtime with TensorRT. Names, shapes and bytes on the wire are the same. Which of them and how
lies in ``<root>/.serving.json``: whoever adds a version to a repository keeps to it.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Literal, Self

from atlas_core.errors import (
    ConfigurationError,
    Conflict,
    CorruptFile,
    InvalidInput,
    NotFound,
)
from atlas_core.model_spec import INPUT_NAME, OUTPUT_NAME, ModelSpec
from google.protobuf import text_format
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError
from tritonclient.grpc import model_config_pb2 as pb

SPEC_PARAMETER = "atlasloop.spec."
"""Prefix of the config parameters that hold a `ModelSpec` as JSON; the Triton version follows."""

IN_SERVICE_PARAMETER = "atlasloop.in_service"
"""Config parameter: the Triton version that answers when none is asked for; "0": none of them."""

GRAPH_FILE = "model.onnx"
SPEC_FILE = "model.json"
BACKEND_FILE = "model.py"
CONFIG_FILE = "config.pbtxt"

_BACKEND_SOURCE = Path(__file__).with_name("triton_backend") / BACKEND_FILE
SERVING_FILE = ".serving.json"
_INCOMING = ".incoming-"
_LOCK = ".lock"


class _Serving(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    max_batch_size: int = Field(default=4, ge=1, le=64, description="Windows in one request.")


class CpuServing(_Serving):
    """How a CPU serves a model: Triton's Python backend with OpenVINO or ONNX Runtime inside."""

    target: Literal["cpu"] = "cpu"
    runtime: Literal["auto", "openvino", "onnxruntime"] = Field(
        default="auto", description="auto: OpenVINO, and ONNX Runtime where that fails."
    )
    precision: Literal["f32", "bf16"] = Field(
        default="f32",
        description="bf16 is used where the CPU has it; it moves probabilities by up to 0.03.",
    )
    threads: int = Field(default=0, ge=0, le=1024, description="Of one window; 0: all cores.")
    streams: int = Field(default=1, ge=1, le=64, description="Windows that run at once.")
    cache_dir: Path | None = Field(
        default=None, description="Compiled graphs; a Swin UNETR takes seconds to compile anew."
    )


class GpuServing(_Serving):
    """How a GPU serves a model: Triton's ONNX Runtime backend with the TensorRT accelerator."""

    target: Literal["gpu"] = "gpu"
    max_batch_size: int = Field(default=8, ge=1, le=64, description="Windows in one execution.")
    precision: Literal["fp16", "fp32"] = "fp16"
    gpus: tuple[Annotated[int, Field(ge=0)], ...] = Field(
        default=(), description="Device numbers; empty: one set of instances on every GPU."
    )
    instances: int = Field(default=2, ge=1, le=16, description="Per GPU: one computes, one copies.")
    max_queue_delay_us: int = Field(
        default=2000, ge=0, description="Wait for a fuller batch; small against one inference."
    )
    workspace_bytes: int = Field(default=4 << 30, ge=1 << 20, description="TensorRT's scratch.")
    engine_cache_dir: Path = Field(
        default=Path("/var/cache/atlasloop/tensorrt"),
        description="Built engines; building takes minutes, so this must outlive the container.",
    )


Serving = CpuServing | GpuServing

_SERVING = TypeAdapter[Serving](Annotated[Serving, Field(discriminator="target")])

NEWEST = -1
"""In place of a version in service: the newest of those served."""


def model_config(
    specs: Sequence[ModelSpec], serving: Serving, in_service: int | None = NEWEST
) -> pb.ModelConfig:
    """Triton's configuration of one model that serves exactly the versions in `specs`.

    All versions share one input and output description, so they must agree on organs and patch.

    Args:
        in_service: t of the version that answers when none is asked for; None: none of them.

    Raises:
        InvalidInput: no version, a version twice, two names, versions of different shapes, or a
            version in service that is not among them.
    """
    newest = _require_one_model(specs)
    if in_service == NEWEST:
        in_service = newest.version
    if in_service is not None and in_service not in {spec.version for spec in specs}:
        raise InvalidInput(
            f"version {in_service} of model {newest.name} is not served",
            expected=", ".join(str(spec.version) for spec in specs),
            got=in_service,
        )
    z, y, x = reversed(newest.patch)
    config = pb.ModelConfig(
        name=newest.name,
        max_batch_size=serving.max_batch_size,
        input=[pb.ModelInput(name=INPUT_NAME, data_type=pb.TYPE_FP32, dims=[1, z, y, x])],
        output=[
            pb.ModelOutput(
                name=OUTPUT_NAME, data_type=pb.TYPE_UINT8, dims=[len(newest.organs), z, y, x]
            )
        ],
    )
    config.version_policy.specific.versions.extend(sorted(spec.triton_version for spec in specs))
    for spec in specs:
        parameter = f"{SPEC_PARAMETER}{spec.triton_version}"
        config.parameters[parameter].string_value = spec.model_dump_json()
    config.parameters[IN_SERVICE_PARAMETER].string_value = str(
        0 if in_service is None else in_service + 1
    )
    if isinstance(serving, CpuServing):
        _serve_on_cpu(config, serving)
    else:
        _serve_on_gpu(config, serving)
    return config


def config_text(config: pb.ModelConfig) -> str:
    """`config` as the text of a ``config.pbtxt``."""
    return str(text_format.MessageToString(config))


def specs_in(config: pb.ModelConfig) -> tuple[ModelSpec, ...]:
    """The versions that `config` describes, oldest first.

    Raises:
        CorruptFile: a parameter holds no valid `ModelSpec`.
    """
    specs = []
    for key, parameter in config.parameters.items():
        if key.startswith(SPEC_PARAMETER):
            specs.append(_parse_spec(parameter.string_value, config.name))
    return tuple(sorted(specs, key=lambda spec: spec.version))


def in_service_of(config: pb.ModelConfig) -> int | None:
    """t of the version in service by `config`; None: none. Without the parameter: the newest.

    Raises:
        CorruptFile: the parameter is no number.
    """
    newest = max(config.version_policy.specific.versions, default=0)
    text = config.parameters[IN_SERVICE_PARAMETER].string_value or str(newest)
    if not text.isdecimal():
        raise CorruptFile(
            f"{CONFIG_FILE} of model {config.name} is damaged",
            expected=f"a number in {IN_SERVICE_PARAMETER}",
            got=text,
        )
    return int(text) - 1 if int(text) else None


def _require_one_model(specs: Sequence[ModelSpec]) -> ModelSpec:
    if not specs:
        raise InvalidInput("a model needs a version", expected="at least one ModelSpec", got="none")
    newest = max(specs, key=lambda spec: spec.version)
    for spec in specs:
        if spec.name != newest.name:
            raise InvalidInput("two models in one config", expected=newest.name, got=spec.name)
        if (spec.patch, spec.organs) != (newest.patch, newest.organs):
            raise InvalidInput(
                f"versions of model {newest.name} differ in shape",
                expected=f"version {newest.version}: patch {newest.patch}, organs {newest.organs}",
                got=f"version {spec.version}: patch {spec.patch}, organs {spec.organs}",
                remedy="serve them under two names, or remove the old version",
            )
    if len({spec.version for spec in specs}) != len(specs):
        raise InvalidInput(f"a version of model {newest.name} is given twice")
    return newest


def _serve_on_cpu(config: pb.ModelConfig, serving: CpuServing) -> None:
    config.backend = "python"
    config.instance_group.add(kind=pb.ModelInstanceGroup.KIND_CPU, count=1)
    # Nobody waits for a fuller batch; what did wait is run side by side, a window per stream.
    config.dynamic_batching.preferred_batch_size.append(
        min(serving.streams, serving.max_batch_size)
    )
    options = {
        "runtime": serving.runtime,
        "precision": serving.precision,
        "threads": str(serving.threads),
        "streams": str(serving.streams),
        "cache_dir": str(serving.cache_dir.absolute()) if serving.cache_dir else "",
        # Only tells a server that loaded an older one that there is something new to load.
        "backend": hashlib.sha256(_BACKEND_SOURCE.read_bytes()).hexdigest()[:12],
    }
    for key, value in options.items():
        config.parameters[f"atlasloop.{key}"].string_value = value


def _serve_on_gpu(config: pb.ModelConfig, serving: GpuServing) -> None:
    config.platform = "onnxruntime_onnx"
    config.backend = "onnxruntime"
    config.default_model_filename = GRAPH_FILE
    config.instance_group.add(
        kind=pb.ModelInstanceGroup.KIND_GPU, count=serving.instances, gpus=serving.gpus
    )
    full = serving.max_batch_size
    batching = config.dynamic_batching
    batching.preferred_batch_size.append(full)
    batching.max_queue_delay_microseconds = serving.max_queue_delay_us

    tensorrt = config.optimization.execution_accelerators.gpu_execution_accelerator.add(
        name="tensorrt"
    )
    window = "x".join(str(size) for size in config.input[0].dims)
    tensorrt.parameters.update(
        {
            "precision_mode": serving.precision.upper(),
            "max_workspace_size_bytes": str(serving.workspace_bytes),
            "trt_engine_cache_enable": "1",
            "trt_engine_cache_path": str(serving.engine_cache_dir / config.name),
            "trt_timing_cache_enable": "1",
            "trt_timing_cache_path": str(serving.engine_cache_dir / config.name),
            # One engine for every batch size: without a declared profile TensorRT builds a new
            # engine, for minutes, whenever a batch of another size arrives.
            "trt_profile_min_shapes": f"{INPUT_NAME}:1x{window}",
            "trt_profile_opt_shapes": f"{INPUT_NAME}:{full}x{window}",
            "trt_profile_max_shapes": f"{INPUT_NAME}:{full}x{window}",
        }
    )
    # The engine is built before the version counts as ready, not in the first user's request.
    for batch_size in sorted({1, full}):
        warmup = config.model_warmup.add(name=f"batch of {batch_size}", batch_size=batch_size)
        tensor = warmup.inputs[INPUT_NAME]
        tensor.data_type = pb.TYPE_FP32
        tensor.dims.extend(config.input[0].dims)
        tensor.zero_data = True


class TritonRepository:
    """The folder that Triton serves from.

    Args:
        root: the folder; made on the first install.
        serving: how every model in it is served.
    """

    def __init__(self, root: Path, serving: Serving) -> None:
        self.root = root
        self.serving = serving

    @classmethod
    def prepared(cls, root: Path) -> Self:
        """A repository as `configure` left it, for who only changes which versions it serves.

        Raises:
            ConfigurationError: it was not configured, or is not there.
            CorruptFile: it does not say how it is served.
        """
        try:
            text = (root / SERVING_FILE).read_text(encoding="utf-8")
        except OSError as error:
            raise ConfigurationError(
                f"{root} is no model repository that was prepared",
                expected=SERVING_FILE,
                got=error.strerror,
                remedy="mount it, and run `python -m atlas_embedded.model_repository` on it first",
            ) from None
        try:
            return cls(root, _SERVING.validate_json(text))
        except ValidationError as error:
            raise CorruptFile(
                f"{SERVING_FILE} of the model repository {root} is not valid",
                got=error.errors()[0]["msg"],
                remedy="prepare the repository again",
            ) from None

    def install(self, exported: Path) -> ModelSpec:
        """Adds the exported model in folder `exported`, and puts it into service if it is newer.

        Versions that are served already stay loaded beside it. Installing the same file again
        changes nothing but ``config.pbtxt``, which is written anew.

        Raises:
            CorruptFile: the graph's SHA-256 is not the one that ``model.json`` states.
            Conflict: this version is there with another graph.
            InvalidInput: the versions of the model differ in organs or patch.
            NotFound: `exported` holds no exported model.
        """
        return self._add(exported, into_service=True)

    def stage(self, exported: Path) -> ModelSpec:
        """As `install`, but the version in service stays; the new one is served beside it."""
        return self._add(exported, into_service=False)

    def put_into_service(self, name: str, version: int) -> int | None:
        """Makes t = `version` the one that answers; the one before stays loaded, others do not.

        Takes effect when Triton loads the model again.

        Returns:
            t of the version before; None if there was none.

        Raises:
            NotFound: there is no such version.
        """
        with self._writing():
            before = self.in_service(name)
            kept = {version} if before is None else {version, before}
            by_version = {spec.version: spec for spec in self.installed(name)}
            if version not in by_version:
                raise NotFound(f"model {name} has no version {version} in this repository")
            specs = [by_version[v] for v in sorted(kept & by_version.keys())]
            self._write_config(model_config(specs, self.serving, version))
            return before

    def serve_only(self, name: str, versions: Iterable[int], in_service: int | None) -> None:
        """Serves exactly `versions` of those installed; the others stay on disk.

        Raises:
            InvalidInput: none of them is installed, or `in_service` is not among them.
        """
        with self._writing():
            wanted = set(versions)
            specs = [spec for spec in self.installed(name) if spec.version in wanted]
            self._write_config(model_config(specs, self.serving, in_service))

    def remove(self, name: str, version: int) -> None:
        """Takes version t = `version` of model `name` out; with its last version the model goes.

        If it was in service, the newest that is left is. Triton keeps serving what it has loaded
        until it is told to load the model again.

        Raises:
            NotFound: there is no such version.
        """
        with self._writing():
            present = self.installed(name)
            left = [spec for spec in present if spec.version != version]
            if len(left) == len(present):
                raise NotFound(f"model {name} has no version {version} in this repository")
            if not left:
                self._discard(self.root / name)
                return
            served = [spec for spec in self.served(name) if spec.version != version] or left
            kept = self.in_service(name)
            self._write_config(
                model_config(served, self.serving, NEWEST if kept == version else kept)
            )
            self._discard(self.root / name / str(version + 1))

    def configure(self) -> None:
        """Brings configurations and backend files up to date with `serving` and this package."""
        with self._writing():
            self._write(self.root / SERVING_FILE, self.serving.model_dump_json())
            for name in self.models():
                for spec in self.installed(name):
                    self._refresh_backend(self.root / name / str(spec.triton_version))
                self._write_config(
                    model_config(self.served(name), self.serving, self.in_service(name))
                )

    def served(self, name: str) -> tuple[ModelSpec, ...]:
        """Versions that ``config.pbtxt`` serves, oldest first; without one: all installed.

        Raises:
            CorruptFile: a file of the model is damaged.
        """
        installed = self.installed(name)
        config = self._config(name)
        if config is None:
            return installed
        versions = set(config.version_policy.specific.versions)
        return tuple(spec for spec in installed if spec.triton_version in versions)

    def in_service(self, name: str) -> int | None:
        """t of the version of model `name` that answers when none is asked for; None: none."""
        config = self._config(name)
        if config is not None:
            return in_service_of(config)
        return max((spec.version for spec in self.installed(name)), default=None)

    def models(self) -> tuple[str, ...]:
        """Names of the models that hold a version, sorted."""
        if not self.root.is_dir():
            return ()
        names = sorted(path.name for path in self.root.iterdir() if path.is_dir())
        return tuple(name for name in names if not name.startswith(".") and self.installed(name))

    def installed(self, name: str) -> tuple[ModelSpec, ...]:
        """Versions of model `name`, oldest first; empty when there is none.

        Raises:
            CorruptFile: a version folder without a valid ``model.json``.
        """
        folder = self.root / name
        if not folder.is_dir():
            return ()
        versions = [path for path in folder.iterdir() if path.is_dir() and path.name.isdecimal()]
        return tuple(sorted((_read_spec(path) for path in versions), key=lambda s: s.version))

    def _add(self, exported: Path, *, into_service: bool) -> ModelSpec:
        spec = read_spec(exported)
        with self._writing():
            present = {other.version: other for other in self.installed(spec.name)}
            same = present.setdefault(spec.version, spec)
            if same.sha256 != spec.sha256:
                raise Conflict(
                    f"version {spec.version} of model {spec.name} is installed with another graph",
                    expected=f"sha256 {same.sha256[:12]}…",
                    got=f"{spec.sha256[:12]}…",
                    remedy="export it under the next version, or remove the installed one first",
                )
            served = {other.version: other for other in self.served(spec.name)} | {
                spec.version: same
            }
            kept = self.in_service(spec.name)
            if into_service and (kept is None or spec.version > kept):
                kept = spec.version
            # Refuses before any write.
            config = model_config(list(served.values()), self.serving, kept)
            if same is spec:
                self._place(exported, spec)
            self._write_config(config)
        return spec

    def _config(self, name: str) -> pb.ModelConfig | None:
        path = self.root / name / CONFIG_FILE
        try:
            return text_format.Parse(path.read_text(encoding="utf-8"), pb.ModelConfig())
        except FileNotFoundError:
            return None
        except (text_format.ParseError, UnicodeDecodeError) as error:
            raise CorruptFile(
                f"{CONFIG_FILE} of model {name} cannot be read",
                got=error,
                remedy=f"remove the file: it is written anew for all versions in {name}/",
            ) from None

    def _place(self, exported: Path, spec: ModelSpec) -> None:
        """Copies into a hidden folder, checks the copy, and renames it to the version."""
        folder = self.root / spec.name
        folder.mkdir(exist_ok=True)
        with self._incoming() as incoming:
            shutil.copyfile(exported / GRAPH_FILE, incoming / GRAPH_FILE)
            shutil.copyfile(exported / SPEC_FILE, incoming / SPEC_FILE)
            shutil.copyfile(_BACKEND_SOURCE, incoming / BACKEND_FILE)
            _require_sha256(incoming / GRAPH_FILE, spec)
            for path in (*incoming.iterdir(), incoming):
                _sync(path)
            incoming.chmod(0o755)  # mkdtemp made it private; Triton may run as another user
            incoming.rename(folder / str(spec.triton_version))
            _sync(folder)

    def _refresh_backend(self, version: Path) -> None:
        source = _BACKEND_SOURCE.read_bytes()
        backend = version / BACKEND_FILE
        if not backend.exists() or backend.read_bytes() != source:
            with self._incoming() as incoming:
                (incoming / BACKEND_FILE).write_bytes(source)
                _sync(incoming / BACKEND_FILE)
                (incoming / BACKEND_FILE).replace(backend)

    def _write_config(self, config: pb.ModelConfig) -> None:
        self._write(self.root / config.name / CONFIG_FILE, config_text(config))

    def _write(self, target: Path, text: str) -> None:
        """Replaces the file `target` in one step."""
        with self._incoming() as incoming:
            path = incoming / target.name
            path.write_text(text, encoding="utf-8")
            _sync(path)
            path.replace(target)
            _sync(target.parent)

    def _discard(self, folder: Path) -> None:
        """Removes `folder` so that nobody ever sees half of it."""
        with self._incoming() as aside:
            folder.rename(aside / folder.name)

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """One writer at a time: what is there decides what is written."""
        self.root.mkdir(parents=True, exist_ok=True)
        with (self.root / _LOCK).open("a", encoding="ascii") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            for left_by_a_crash in self.root.glob(f"{_INCOMING}*"):
                shutil.rmtree(left_by_a_crash)
            yield

    @contextmanager
    def _incoming(self) -> Iterator[Path]:
        """A hidden folder, on the same file system so that a rename out of it is one step."""
        path = Path(tempfile.mkdtemp(prefix=_INCOMING, dir=self.root))
        try:
            yield path
        finally:
            shutil.rmtree(path, ignore_errors=True)


def read_spec(exported: Path) -> ModelSpec:
    """The `ModelSpec` of an exported model, its graph checked against the SHA-256 in it.

    Raises:
        NotFound: ``model.onnx`` or ``model.json`` is missing.
        CorruptFile: ``model.json`` is no `ModelSpec`, or the graph is another one.
    """
    spec = _read_spec(exported)
    _require_sha256(exported / GRAPH_FILE, spec)
    return spec


def exported_models(folder: Path) -> tuple[Path, ...]:
    """Folders directly below `folder` that hold an exported model, sorted by name."""
    if not folder.is_dir():
        return ()
    return tuple(sorted(path.parent for path in folder.glob(f"*/{SPEC_FILE}")))


def _read_spec(folder: Path) -> ModelSpec:
    path = folder / SPEC_FILE
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise NotFound(f"no exported model in folder {folder.name}", expected=SPEC_FILE) from None
    return _parse_spec(text, folder.name)


def _parse_spec(text: str, owner: str) -> ModelSpec:
    try:
        return ModelSpec.model_validate_json(text)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        raise CorruptFile(
            f"the description of model {owner} is not valid",
            expected="a ModelSpec as JSON",
            got=f"{place or 'text'}: {first['msg']}",
        ) from None


def _require_sha256(graph: Path, spec: ModelSpec) -> None:
    try:
        with graph.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
    except FileNotFoundError:
        raise NotFound(f"the graph of model {spec.name} is missing", expected=GRAPH_FILE) from None
    if found != spec.sha256:
        raise CorruptFile(
            f"the graph of model {spec.name} version {spec.version} is not the exported one",
            expected=f"sha256 {spec.sha256[:12]}…",
            got=f"{found[:12]}…",
            remedy="export or copy the model again",
        )


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
