"""Trains a version of a model, stores and registers it. It does not serve yet."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from atlas_core.atomic_writes import replace_file
from atlas_core.catalog import (
    Catalog,
    TrainingLabel,
    find_models,
    next_version,
    now,
    record_training_labels,
)
from atlas_core.errors import InvalidInput, NotFound
from atlas_core.model_spec import ModelRef, ModelSpec
from atlas_core.records import Model
from atlas_core.store import CaseStore
from atlas_models.serving import read_spec

from atlas_flows.models.nnunet_finetuning import train_nnunet_version
from atlas_flows.models.store import ModelStore
from atlas_flows.models.training_order import TrainingOrder
from atlas_flows.settings import Places

if TYPE_CHECKING:
    from atlas_models.training import TrainingProgress

PROVENANCE_FILE = "provenance.json"


def train_version(
    order: TrainingOrder,
    here: Places,
    catalog: Catalog,
    store: ModelStore,
    on_step: Callable[[int, int], None],
) -> ModelSpec:
    """Train the next version of a model, store it, and register it with the labels it learnt from.

    A run that was stopped resumes when it is requested again.

    Raises:
        AtlasError: see `atlas_models.training.train_from_catalog`; nothing is stored then.
        InvalidInput: the version to train further is another model's.
    """
    if order.parent is not None:
        parent_spec, parent_folder = store.find(*order.parent)
        if trainer_of(parent_folder) == "nnunet":
            return _by_nnunet(order, (parent_spec, parent_folder), here, catalog, store, on_step)
    return _by_us(order, here, catalog, store, on_step)


def trainer_of(folder: Path) -> Literal["monai", "nnunet"] | None:
    """Who can train the version in `folder` further; None: nobody."""
    if (folder / "weights.safetensors").exists():
        return "monai"
    return "nnunet" if (folder / "nnunet" / "origin.json").exists() else None


def _by_nnunet(
    order: TrainingOrder,
    parent: tuple[ModelSpec, Path],
    here: Places,
    catalog: Catalog,
    store: ModelStore,
    on_step: Callable[[int, int], None],
) -> ModelSpec:
    spec = parent[0]
    version = order.version
    if version is None:
        version = next_version(catalog, spec.name, store.versions(spec.name))
    elif store.folder(spec.name, version).exists():
        return _taken(spec.name, version, spec.ref, store, catalog)
    trained = train_nnunet_version(order, parent, version, here, catalog, store, on_step)
    record_training_labels(catalog, trained.ref, _learnt(store.folder(spec.name, version)))
    return trained


def _by_us(
    order: TrainingOrder,
    here: Places,
    catalog: Catalog,
    store: ModelStore,
    on_step: Callable[[int, int], None],
) -> ModelSpec:
    from atlas_models.config import read_config
    from atlas_models.training import LabelChoice, TrainRequest, train_from_catalog

    config = order.config or _recorded(order, here, catalog, store)
    name = read_config(config, dict(order.overrides)).name
    parent, weights = _parent(order, name, store)
    version = order.version
    if version is None:
        version = next_version(catalog, name, store.versions(name))
    elif store.folder(name, version).exists():
        return _taken(name, version, parent, store, catalog)

    def say(step: TrainingProgress) -> None:
        on_step(step.step, step.steps)

    run_folder = order.run_folder or here.training_runs / f"{name}-{version}"
    with store.incoming() as folder:
        request = TrainRequest(
            config=config,
            overrides=dict(order.overrides),
            datasets=order.datasets,
            sources=order.sources,
            labels=LabelChoice(order.labels),
            validation_share=order.validation_share,
            weights=weights,
            run_folder=run_folder,
            output=Path(folder) / name,
            version=version,
            parent=parent,
            loaders=order.loaders,
        )
        outcome = train_from_catalog(
            request, store=CaseStore(here.store), catalog=catalog, on_progress=say
        )
        if outcome is None:
            raise InvalidInput(
                "a distributed run ends in its first process",
                remedy="start it with `torchrun -m atlas_models.train_command`",
            )
        spec = store.add(
            outcome.folder,
            catalog,
            parent=parent,
            metrics=outcome.metrics,
            provenance=outcome.provenance,
        )
    record_training_labels(catalog, spec.ref, _learnt(store.folder(name, version)))
    return spec


def _recorded(order: TrainingOrder, here: Places, catalog: Catalog, store: ModelStore) -> str:
    """A file with the configuration of the version that is trained further.

    Raises:
        NotFound: it is not on record, or there is no such version.
        InvalidInput: the version came without weights that could learn.
    """
    if order.parent is None:
        raise InvalidInput("say what to train", expected="a configuration")
    spec, folder = store.find(*order.parent)
    try:
        content = configuration_of(spec.name, spec.version, catalog)
    except NotFound as error:
        if trainer_of(folder) is not None:
            raise
        raise InvalidInput(
            f"nobody can train model {spec.name}@{spec.version} further",
            expected="weights of a network, or an nnU-Net, beside its graph",
            got="the graph alone",
            remedy="the loop goes on without it; import the weights it was made of in its place",
        ) from error
    here.training_runs.mkdir(parents=True, exist_ok=True)
    path = here.training_runs / f"{spec.name}-{spec.version}.yaml"  # JSON is YAML
    replace_file(path, content.encode())
    return str(path)


def configuration_of(model: str, version: int, catalog: Catalog) -> str:
    """How a version was built and trained, as JSON.

    Raises:
        NotFound: it is not on record.
    """
    known = find_models(catalog, model, version)
    found = next((m.provenance["config"] for m in known if "config" in m.provenance), None)
    if found is None:
        raise NotFound(
            f"it is not on record how model {model}@{version} was trained",
            remedy="train it further by `atlasloop models finetune` with a configuration, and "
            "promote it",
        )
    return found


def _taken(
    name: str, version: int, parent: ModelRef | None, store: ModelStore, catalog: Catalog
) -> ModelSpec:
    """A version that was trained and stored before; registers what is not registered of it."""
    folder = store.folder(name, version)
    spec = read_spec(folder)
    content = json.loads((folder / PROVENANCE_FILE).read_text(encoding="utf-8"))
    catalog.register_model(
        Model(
            spec=spec,
            parent=parent,
            metrics=content["metrics"],
            provenance=content["provenance"],
            created_at=now(),
        )
    )
    record_training_labels(catalog, spec.ref, _learnt(folder))
    return spec


def _parent(
    order: TrainingOrder, name: str, store: ModelStore
) -> tuple[ModelRef | None, Path | None]:
    """The version to train further, and the folder with its weights."""
    if order.parent is None:
        return None, None
    spec, folder = store.find(*order.parent)
    if spec.name != name:
        raise InvalidInput(
            "the configuration is of another model",
            expected=f"name: {spec.name}",
            got=name,
            remedy=f"give a configuration of {spec.name}, or --set name={spec.name}",
        )
    if trainer_of(folder) != "monai":
        raise NotFound(
            f"model {spec.name}@{spec.version} has no weights to train further",
            expected="weights.safetensors",
            remedy="imported graphs are served as they are; train a model of ours",
        )
    return spec.ref, folder


def _learnt(folder: Path) -> list[TrainingLabel]:
    """The labels of the training cases, from the provenance that training wrote."""
    content = json.loads((folder / PROVENANCE_FILE).read_text(encoding="utf-8"))
    return [
        TrainingLabel(
            case_id=case_id, organ=organ, label_sha256=label["sha256"], source=label["source"]
        )
        for case_id, case in content["cases"].items()
        if case["role"] == "training"
        for organ, label in case["labels"].items()
    ]
