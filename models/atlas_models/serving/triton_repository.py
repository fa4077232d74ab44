"""Triton's model repository: exported models in, folders and ``config.pbtxt`` out. Needs no torch.

    <root>/<name>/config.pbtxt
    <root>/<name>/<t + 1>/model.onnx     the graph
    <root>/<name>/<t + 1>/model.json     its `ModelSpec`
    <root>/<name>/<t + 1>/model.py       the Python backend that runs it on a CPU

Triton may read the repository while it changes: a version folder appears by one rename and only
then does a new ``config.pbtxt``, replaced in one step, name it. Removal goes the other way round.
``config.pbtxt`` carries the `ModelSpec` of every version it serves as the parameter
``atlasloop.spec.<triton version>``, so that a client of Triton learns everything from Triton, and
in ``atlasloop.in_service`` which of them answers when no version is asked for. The others are
loaded beside it: a new version until it has proved itself, the last one for a quick way back.
Versions that ``config.pbtxt`` does not name lie on disk only.

One graph, two targets: `CpuServing` runs it by OpenVINO in Triton's Python backend, `GpuServing` by
ONNX Runtime with TensorRT. Names, shapes and bytes on the wire are the same. Which of them and how
lies in ``<root>/.serving.json``: whoever adds a version to a repository keeps to it. The ensembles
that are loaded lie in ``<root>/.ensembles.json``, and in every ``config.pbtxt``.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Self

from atlas_core.atomic_writes import (
    discard_folder,
    move_file,
    move_folder,
    scratch_folder,
    sync_tree,
    write_synced,
)
from atlas_core.ensembles import EnsembleDescription, EnsembleName
from atlas_core.errors import ConfigurationError, Conflict, CorruptFile, NotFound
from atlas_core.model_spec import ModelSpec
from atlas_core.triton_parameters import ensemble_parameters
from filelock import FileLock
from google.protobuf import text_format
from pydantic import TypeAdapter, ValidationError
from tritonclient.grpc import model_config_pb2 as pb

from atlas_models.serving.exported_model import (
    _BACKEND_SOURCE,
    BACKEND_FILE,
    CONFIG_FILE,
    GRAPH_FILE,
    SPEC_FILE,
    _read_spec,
    _require_sha256,
    read_spec,
)
from atlas_models.serving.triton_config import (
    _SERVING,
    NEWEST,
    Serving,
    config_text,
    in_service_of,
    model_config,
)

SERVING_FILE = ".serving.json"
ENSEMBLES_FILE = ".ensembles.json"
_ENSEMBLES = TypeAdapter(dict[EnsembleName, EnsembleDescription])
_INCOMING = ".incoming-"
_LOCK = ".lock"


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
        """A repository as `configure` left it, for callers that only change what it serves.

        Raises:
            ConfigurationError: it was not configured, or does not exist.
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
        changes nothing but ``config.pbtxt``, which is written again.

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
        """Removes version t = `version` of model `name`; with its last version the model goes.

        If it was in service, the newest of the rest takes its place. Triton keeps serving what it
        has loaded until it is told to load the model again.

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
            self._replace(self.root / SERVING_FILE, self.serving.model_dump_json().encode())
            for name in self.models():
                for spec in self.installed(name):
                    self._refresh_backend(self.root / name / str(spec.triton_version))
                self._write_config(self.config(name))

    @property
    def is_prepared(self) -> bool:
        """Whether `configure` was here: what is in it since then is somebody's decision."""
        return (self.root / SERVING_FILE).exists()

    @property
    def ensembles(self) -> dict[str, EnsembleDescription]:
        """The ensembles that it serves, by name; empty: all models in service are one.

        Raises:
            CorruptFile: they cannot be read.
        """
        try:
            return _ENSEMBLES.validate_json((self.root / ENSEMBLES_FILE).read_bytes())
        except FileNotFoundError:
            return {}
        except ValidationError as error:
            raise CorruptFile(
                f"{ENSEMBLES_FILE} of the model repository cannot be read",
                got=error.errors()[0]["msg"],
                remedy="remove the file: `atlasloop up` writes it anew",
            ) from None

    def describe(self, ensembles: Mapping[str, EnsembleDescription]) -> None:
        """Has every model say from now on that these are loaded. Takes effect, model by model, when
        Triton loads them again."""
        with self._writing():
            if dict(ensembles) != self.ensembles:
                content = _ENSEMBLES.dump_json(dict(sorted(ensembles.items())))
                self._replace(self.root / ENSEMBLES_FILE, content)
            for name in self.models():
                config, wanted = self._config(name), self.config(name)
                if config is None or config.parameters != wanted.parameters:
                    self._write_config(wanted)

    def needed(self) -> tuple[str, ...]:
        """Names of the models that its ensembles need; of those it lacks, nothing."""
        described = self.ensembles.values()
        members = {name for ensemble in described for name in ensemble.members}
        return tuple(name for name in self.models() if not described or name in members)

    def config(self, name: str) -> pb.ModelConfig:
        """What ``config.pbtxt`` of a model says when it is written now."""
        return self._described(model_config(self.served(name), self.serving, self.in_service(name)))

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
        """t of the version of model `name` that answers when no version is asked for, if any."""
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
        """Copies into a hidden folder, checks the copy, and moves it to the version's place."""
        with self._incoming() as incoming:
            shutil.copyfile(exported / GRAPH_FILE, incoming / GRAPH_FILE)
            shutil.copyfile(exported / SPEC_FILE, incoming / SPEC_FILE)
            shutil.copyfile(_BACKEND_SOURCE, incoming / BACKEND_FILE)
            _require_sha256(incoming / GRAPH_FILE, spec)
            sync_tree(incoming)
            incoming.chmod(0o755)  # it was private; Triton may run as another user
            move_folder(incoming, self.root / spec.name / str(spec.triton_version))

    def _refresh_backend(self, version: Path) -> None:
        source = _BACKEND_SOURCE.read_bytes()
        backend = version / BACKEND_FILE
        if not backend.exists() or backend.read_bytes() != source:
            self._replace(backend, source)

    def _described(self, config: pb.ModelConfig) -> pb.ModelConfig:
        for name, text in ensemble_parameters(self.ensembles).items():
            config.parameters[name].string_value = text
        return config

    def _write_config(self, config: pb.ModelConfig) -> None:
        config = self._described(config)
        self._replace(self.root / config.name / CONFIG_FILE, config_text(config).encode())

    def _replace(self, target: Path, content: bytes) -> None:
        """Replaces the file `target` in one step; its draft never lies where Triton looks."""
        with self._incoming() as incoming:
            draft = incoming / target.name
            write_synced(draft, content)
            move_file(draft, target)

    def _discard(self, folder: Path) -> None:
        """Removes `folder` so that no reader sees a part of it."""
        with self._incoming() as incoming:
            discard_folder(folder, incoming)

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """One writer at a time: what is there decides what is written."""
        with FileLock(self.root / _LOCK):
            for left_by_a_crash in self.root.glob(f"{_INCOMING}*"):
                shutil.rmtree(left_by_a_crash)
            yield

    def _incoming(self) -> AbstractContextManager[Path]:
        return scratch_folder(self.root, prefix=_INCOMING)
