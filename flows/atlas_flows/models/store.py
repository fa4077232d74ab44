"""Exported models, each in ``<store>/<name>/<t>`` as export left it (``<home>/models`` at home).

Triton's repository holds what is served; this store holds what a version was made of, weights
included.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path

from atlas_core.atomic_writes import move_folder, new_folder, scratch_folder, sync_tree
from atlas_core.catalog import Catalog, now
from atlas_core.errors import Conflict, NotFound
from atlas_core.model_spec import ModelRef, ModelSpec
from atlas_core.records import Model
from atlas_models.serving import TritonRepository, exported_models, read_spec


class ModelStore:
    """Where versions of models are found, and where new ones are put.

    Args:
        root: the store; made when something is put there.
        shipped: folder of exported models that came with the program.
        repository: Triton's, which holds what serves.
    """

    def __init__(self, root: Path, shipped: Path, repository: TritonRepository) -> None:
        self.root = root
        self._shipped = shipped
        self._repository = repository

    def folder(self, name: str, version: int) -> Path:
        """Of one version, whether or not it is there."""
        return self.root / name / str(version)

    def versions(self, name: str) -> set[int]:
        """t of every version that lies somewhere on this machine."""
        return {spec.version for spec, _ in self._everywhere(name)}

    def find(self, name: str, version: int | None = None) -> tuple[ModelSpec, Path]:
        """A version (None: the newest) and its folder; one in this store before any other.

        Raises:
            NotFound: there is none.
            CorruptFile: its files contradict each other.
        """
        found = [
            (spec, folder)
            for spec, folder in self._everywhere(name)
            if version in (None, spec.version)
        ]
        if not found:
            known = sorted(self.versions(name))
            raise NotFound(
                f"there is no model {name}" + ("" if version is None else f"@{version}"),
                expected=", ".join(f"{name}@{t}" for t in known) or "a model that was imported",
                remedy="see `atlasloop models list`",
            )
        # Of equal versions the first: `max` keeps it.
        _, folder = max(found, key=lambda entry: entry[0].version)
        return read_spec(folder), folder

    def add(
        self,
        exported: Path,
        catalog: Catalog,
        *,
        parent: ModelRef | None = None,
        metrics: dict[str, float] | None = None,
        provenance: dict[str, str] | None = None,
    ) -> ModelSpec:
        """Move an exported model into this store, and register it.

        Raises:
            Conflict: that version is there already, or registered with another graph.
        """
        spec = read_spec(exported)
        target = self.folder(spec.name, spec.version)
        known = [m for m in catalog.models(spec.name) if m.spec.version == spec.version]
        if target.exists() or any(model.spec.ref != spec.ref for model in known):
            raise Conflict(
                f"there is a model {spec.name}@{spec.version} already",
                remedy="leave --version out: the next one is taken",
            )
        move_folder(exported, target)
        try:
            catalog.register_model(
                Model(
                    spec=spec,
                    parent=parent,
                    metrics=metrics or {},
                    provenance=provenance or {},
                    created_at=now(),
                )
            )
        except BaseException:
            # Else the number would be taken by a version without any record of its making.
            move_folder(target, exported)
            raise
        return spec

    def keep(self, spec: ModelSpec) -> None:
        """Have a version here that lies in Triton's repository alone, before it goes from there."""
        _, folder = self.find(spec.name, spec.version)
        if folder.is_relative_to(self._repository.root):
            self.copy_to(spec.name, spec.version, self.folder(spec.name, spec.version))

    def incoming(self) -> AbstractContextManager[Path]:
        """A folder on the same file system, for a model that is being made."""
        return scratch_folder(self.root, prefix=".incoming-")

    def copy_to(self, name: str, version: int | None, target: Path) -> ModelSpec:
        """Copy a version to a folder that does not exist yet, all or nothing.

        Raises:
            NotFound: there is no such version.
            Conflict: the folder exists.
        """
        spec, folder = self.find(name, version)
        if target.exists():
            raise Conflict("the folder exists already", case=target.name, remedy="name another")
        with new_folder(target) as fresh:
            # Triton's own files are made for one repository.
            ignored = shutil.ignore_patterns("model.py")
            shutil.copytree(folder, fresh, ignore=ignored, dirs_exist_ok=True)
            sync_tree(fresh)
        return spec

    def _everywhere(self, name: str) -> Iterator[tuple[ModelSpec, Path]]:
        """This store, the models that came with the program, Triton's repository."""
        own = (self.root / name).glob("*/model.json") if (self.root / name).is_dir() else ()
        folders = [path.parent for path in own if path.parent.name.isdecimal()]
        folders += exported_models(self._shipped)
        folders += [
            self._repository.root / name / str(spec.triton_version)
            for spec in self._repository.installed(name)
        ]
        for folder in folders:
            spec = read_spec(folder)
            if spec.name == name:
                yield spec, folder
