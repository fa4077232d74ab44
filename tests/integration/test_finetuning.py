"""Fine-tuning as a step of the loop: repeated, interrupted, on other labels, diverging."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from atlas_core.catalog import Catalog
from atlas_core.errors import InvalidInput, NotFound
from atlas_core.importing import import_folder
from atlas_core.phantoms import PhantomGrid, write_phantoms
from atlas_core.store import CaseStore
from atlas_embedded.triton_models import repository_of
from atlas_flows.models import (
    FinetuningRequest,
    ModelStore,
    TrainingOrder,
    model_store,
    plan_versions,
    train_version,
)
from atlas_flows.models.version_finetuning import tune
from atlas_flows.settings import FlowSettings, Places
from stack import free_settings

SMALL = {
    "name": "small",
    "channels": [4, 8],
    "patch": [16, 16, 16],
    "spacing_mm": [18.0, 18.0, 18.0],
    "steps": 2,
}
CHECKPOINT_AT = 50
"""Steps between two checkpoints of a training."""


@dataclass(frozen=True)
class Bench:
    here: Places
    catalog: Catalog

    @property
    def models(self) -> ModelStore:
        return model_store(self.here)

    def tune(self, tuning: FinetuningRequest) -> tuple[str, int]:
        """Why it was refused, and how many steps it took."""
        steps: list[int] = []
        trained = tune(tuning, self.here, self.catalog, lambda step, _: steps.append(step))
        return trained.refused, len(steps)


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    """Four labelled phantoms, and version 0 of a tiny model in a repository that nobody serves."""
    settings = free_settings(tmp_path / "home", tmp_path / "none", ("triton",))
    settings.home.mkdir()
    grid = PhantomGrid(columns=32, slice_mm=12.0)
    write_phantoms(tmp_path / "p", 4, 3, labels="truth", grid=grid)
    here = Places(settings, FlowSettings())
    with Catalog.open(settings.catalog_url) as catalog:
        import_folder(
            tmp_path / "p", "p", "phantoms", catalog=catalog, store=CaseStore(settings.store)
        )
        models = model_store(here)
        order = TrainingOrder("demo/unet", overrides=SMALL, validation_share=0.0, version=0)
        spec = train_version(order, here, catalog, models, lambda *_: None)
        repository_of(settings).install(models.folder(spec.name, 0))
        yield Bench(here, catalog)


TUNING = FinetuningRequest("small", parent=0, version=1, steps=2, validation_share=0.0)


def test_the_next_version_comes_from_the_one_in_service(bench: Bench) -> None:
    plan = plan_versions(bench.here, bench.catalog, ["small"], [])
    assert (plan.parents, plan.versions) == ({"small": 0}, {"small": 1})
    with pytest.raises(NotFound, match="not in service"):
        plan_versions(bench.here, bench.catalog, ["small"], ["other"])
    (bench.models.folder("small", 0) / "weights.safetensors").unlink()
    with pytest.raises(InvalidInput, match="atlasloop models train"):
        plan_versions(bench.here, bench.catalog, ["small"], [])


def test_a_version_is_trained_once(bench: Bench) -> None:
    assert bench.tune(TUNING) == ("", 2)
    assert bench.tune(TUNING) == ("", 0)
    assert [model.spec.version for model in bench.catalog.models("small")] == [0, 1]


def test_a_version_that_was_stored_but_not_registered_is(bench: Bench, tmp_path: Path) -> None:
    bench.tune(TUNING)
    (trained,) = (m for m in bench.catalog.models("small") if m.spec.version == 1)
    with Catalog.open(f"sqlite:///{tmp_path}/other.sqlite") as other:
        for model in bench.catalog.models("small"):
            if model.spec.version == 0:
                other.register_model(model)
        assert Bench(bench.here, other).tune(TUNING) == ("", 0)
        (found,) = (m for m in other.models("small") if m.spec.version == 1)
    same = {"created_at": trained.created_at}
    assert found.model_copy(update=same) == trained


def test_a_training_that_was_killed_goes_on_unless_labels_changed(bench: Bench) -> None:
    long = replace(TUNING, steps=CHECKPOINT_AT + 4)

    def kill(step: int, steps: int) -> None:
        if step > CHECKPOINT_AT:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        tune(long, bench.here, bench.catalog, kill)
    bench.catalog.delete_case(bench.catalog.cases()[0].id)
    assert bench.tune(long) == ("", CHECKPOINT_AT + 4)

    further = replace(long, version=2)
    with pytest.raises(KeyboardInterrupt):
        tune(further, bench.here, bench.catalog, kill)
    assert bench.tune(further) == ("", 4)


def test_a_training_that_diverges_is_refused_and_leaves_nothing(bench: Bench) -> None:
    refused, _ = bench.tune(replace(TUNING, learning_rate=1e30, steps=20))
    assert "no number" in refused
    assert not bench.models.folder("small", 1).exists()
    assert repository_of(bench.here.embedded).in_service("small") == 0
