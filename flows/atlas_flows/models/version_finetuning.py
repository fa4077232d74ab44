"""Fine-tuning as a step of the loop: the next version, its training and its promotion (step ⑦).

Each function may be called again after a kill, and does not repeat what was done.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from atlas_core.catalog import Catalog, PromotionKind, next_version, promotions
from atlas_core.errors import AtlasError, Conflict, CorruptFile, InvalidInput, NotFound
from atlas_core.records import LabelSource

from atlas_flows.models import promotion
from atlas_flows.models.outcomes import Promoted, Trained, TrainingPlan
from atlas_flows.models.promotion import PromotionRefused
from atlas_flows.models.server import model_repository, model_store
from atlas_flows.models.site import Site
from atlas_flows.models.store import ModelStore
from atlas_flows.models.training_order import TrainingOrder
from atlas_flows.models.version_training import (
    configuration_of,
    train_version,
    trainer_of,
)
from atlas_flows.settings import Places

log = logging.getLogger(__name__)

CONFIG_FILE = "config.json"
"""Configuration of a fine-tuning, beside its checkpoints."""


@dataclass(frozen=True)
class FinetuningRequest:
    """Which version a fine-tuning makes, from which one, and how.

    Attributes:
        model, parent: name, and t of the version that is trained further.
        version: t of the new one.
        dataset: learn from its cases only; None: from all.
        steps, learning_rate: None: as the configuration of the version in service says.
        pseudo_weight: how much pseudo labels count against labels that people made; None: as
            above. nnU-Net's own trainer knows no weights.
        validation_share: of the cases, held out by their ids.
        labels: "assembled" learns from the assembled maps (§3.2 ⑥), "in_force" from the label
            files of every case, assembled or not.
    """

    model: str
    parent: int
    version: int
    dataset: str | None = None
    steps: int | None = None
    learning_rate: float | None = None
    pseudo_weight: float | None = None
    validation_share: float = 0.1
    labels: Literal["in_force", "assembled"] = "in_force"

    def overrides(self, trainer: Literal["monai", "nnunet"] | None) -> dict[str, Any]:
        """Fields of the configuration that are replaced."""
        wanted: dict[str, Any] = {"steps": self.steps, "learning_rate": self.learning_rate}
        if self.pseudo_weight is not None and trainer == "monai":
            wanted["label_weights"] = {"pseudo": self.pseudo_weight}
        return {name: value for name, value in wanted.items() if value is not None}


def plan_versions(
    here: Places, catalog: Catalog, served: Sequence[str], wanted: Sequence[str]
) -> TrainingPlan:
    """The versions to train next, each from the one in service.

    Args:
        served: models in service.
        wanted: of them; empty: all that can be trained further. Imported graphs cannot.

    Raises:
        NotFound: a wanted model is not in service, or was imported without weights.
        InvalidInput: none can be trained further.
    """
    store = model_store(here)
    for name in wanted:
        if name not in served:
            raise NotFound(
                f"model {name} is not in service", expected=f"one of {', '.join(sorted(served))}"
            )
        _parent(here, store, name)
    chosen = list(wanted) or [name for name in sorted(served) if _trainable(here, store, name)]
    for name in sorted(set(served) - set(chosen)) if not wanted else ():
        log.info("%s cannot be trained further: it serves as it is", name)
    if not chosen:
        raise InvalidInput(
            "no model in service can be trained further",
            got=", ".join(sorted(served)) or "none",
            remedy="train one of ours: `atlasloop models train`",
        )
    return TrainingPlan(
        parents={name: _parent(here, store, name) for name in chosen},
        versions={name: next_version(catalog, name, store.versions(name)) for name in chosen},
    )


def tune(
    tuning: FinetuningRequest, here: Places, catalog: Catalog, on_step: Callable[[int, int], None]
) -> Trained:
    """Train the version in service further; a version that was trained before is taken as it is.

    A run that was killed resumes from its checkpoint. If the labels have changed meanwhile (a case
    was deleted, or revised after all), it starts again.

    Returns:
        With `refused` if the training diverged: the version in service stays as it is.

    Raises:
        NotFound: the model is not in service, or cannot be trained further.
        AtlasError: see `train_version`.
    """
    from atlas_models.training import Diverged

    store = model_store(here)
    order = _order(tuning, here, catalog)
    assert order.run_folder is not None
    try:
        try:
            train_version(order, here, catalog, store, on_step)
        except (Conflict, CorruptFile) as error:
            if not order.run_folder.exists():
                raise
            log.warning("%s@%s is trained from the start: %s", tuning.model, tuning.version, error)
            shutil.rmtree(order.run_folder)
            train_version(_order(tuning, here, catalog), here, catalog, store, on_step)
    except Diverged as error:
        return Trained(version=tuning.version, refused=str(error))
    return Trained(version=tuning.version)


def put_into_service(
    model: str,
    version: int,
    here: Places,
    catalog: Catalog,
    *,
    request: promotion.PromotionRequest,
    on_event: Callable[[str], None],
) -> Promoted:
    """Promote a trained version if it is no worse than the one in service.

    Returns:
        With `refused` if it is worse, or no case can judge it: the version in service stays.

    Raises:
        NotFound: there is no such version.
        AtlasError: see `promotion.promote`.
    """
    site = Site.of(here, catalog)
    _, exported = model_store(here).find(model, version)
    if site.repository.in_service(model) == version:
        return _promoted_before(model, version, catalog)
    try:
        done = promotion.promote(exported, site, request, on_event)
    except (PromotionRefused, NotFound) as error:
        return Promoted(
            version=version,
            before=site.repository.in_service(model),
            refused=str(error),
            evidence=dict(getattr(error, "evidence", {})),
        )
    return Promoted(version=version, before=done.previous_version, evidence=done.evidence)


def _promoted_before(model: str, version: int, catalog: Catalog) -> Promoted:
    """The promotion on record; a run may have been killed before it wrote one."""
    for done in reversed(promotions(catalog, model)):
        if done.kind is PromotionKind.PROMOTED and done.model.version == version:
            return Promoted(version=version, before=done.previous_version, evidence=done.evidence)
    return Promoted(version=version)


def _order(tuning: FinetuningRequest, here: Places, catalog: Catalog) -> TrainingOrder:
    run_folder = here.training_runs / f"{tuning.model}-{tuning.version}"
    run_folder.mkdir(parents=True, exist_ok=True)
    config: Path | None = None
    _, parent = model_store(here).find(tuning.model, tuning.parent)
    trainer = trainer_of(parent)
    if trainer == "monai":
        config = run_folder / CONFIG_FILE
        content = configuration_of(tuning.model, tuning.parent, catalog)
        config.write_text(content, encoding="utf-8")
    return TrainingOrder(
        config=None if config is None else str(config),
        parent=(tuning.model, tuning.parent),
        run_folder=run_folder,
        datasets=() if tuning.dataset is None else (tuning.dataset,),
        labels=tuning.labels,
        overrides=tuning.overrides(trainer),
        validation_share=tuning.validation_share,
        # Assembly chose the best label of every organ; a pseudo label counts for less in the loss.
        sources=tuple(LabelSource),
        version=tuning.version,
    )


def _parent(here: Places, store: ModelStore, model: str) -> int:
    """t of the version in service, which has weights.

    Raises:
        NotFound: none is, or it has none.
    """
    version = model_repository(here).in_service(model)
    if version is None:
        raise NotFound(f"no version of model {model} is in service", remedy="promote one")
    _, folder = store.find(model, version)
    if trainer_of(folder) is None:
        raise NotFound(
            f"model {model}@{version} cannot be trained further",
            expected="weights of ours, or an imported nnU-Net",
            got="a graph only",
            remedy="imported graphs are served as they are; leave this model out",
        )
    return version


def _trainable(here: Places, store: ModelStore, model: str) -> bool:
    try:
        _parent(here, store, model)
    except AtlasError:
        return False
    return True
