"""An imported nnU-Net learns further by nnU-Net's own trainer, and becomes its next version."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from atlas_core.catalog import Catalog
from atlas_core.errors import ConfigurationError, InvalidInput
from atlas_core.importing import import_folder
from atlas_core.organs import read_scheme
from atlas_core.phantoms import PhantomGrid, write_phantoms
from atlas_core.store import CaseStore
from atlas_embedded.triton_models import repository_of
from atlas_flows.demos.phantom_nnunet import CONFIGURATION, SmallPlan, plans_of
from atlas_flows.models import FinetuningRequest, model_store, plan_versions
from atlas_flows.models.version_finetuning import tune
from atlas_flows.settings import FlowSettings, Places
from atlas_models.importing import NnunetChoices, import_nnunet, network_of, read_origin
from atlas_models.serving import read_spec
from atlas_models.training.nnunet_trainer import trainer_class
from stack import free_settings

pytest.importorskip("nnunetv2", reason="nnU-Net is not installed")
pytestmark = pytest.mark.slow

PLAN = SmallPlan(
    spacing=(18.0, 18.0, 18.0),
    patch=(16, 16, 16),
    features=(4, 8, 8),  # with two stages nnU-Net's loss is no number
    kernels=((3, 3, 3),) * 3,
    strides=((1, 1, 1), (2, 2, 2), (2, 2, 2)),
)
LABELS = {"background": 0, "liver": 1, "spleen": 2, "duodenum": 3}


def untrained(folder: Path) -> Path:
    """A result folder with a network that knows nothing yet."""
    from nnunetv2.utilities.get_network_from_plans import get_network_from_plans

    plans = plans_of(PLAN)
    architecture = plans["configurations"][CONFIGURATION]["architecture"]
    torch.manual_seed(0)
    network = get_network_from_plans(
        architecture["network_class_name"], architecture["arch_kwargs"],
        architecture["_kw_requires_import"], 1, len(LABELS), deep_supervision=True,
    )  # fmt: skip
    (folder / "fold_0").mkdir(parents=True)
    (folder / "plans.json").write_text(json.dumps(plans))
    (folder / "dataset.json").write_text(
        json.dumps({"channel_names": {"0": "CT"}, "labels": LABELS, "file_ending": ".nii.gz"})
    )
    content = {
        "network_weights": network.state_dict(),
        "trainer_name": "nnUNetTrainer",
        "init_args": {"configuration": CONFIGURATION},
    }
    torch.save(content, folder / "fold_0" / "checkpoint_best.pth")
    return folder


def test_a_trainer_is_found_by_its_name_alone(capsys: pytest.CaptureFixture[str]) -> None:
    """Whatever packages the other trainers need; one that is not there is said to be missing."""
    joined = trainer_class("nnUNetTrainerNoDA+nnUNetTrainerAdam")
    assert [kind.__name__ for kind in joined.__mro__[:4]] == [
        "nnUNetTrainerNoDA", "nnUNetTrainerNoDA", "nnUNetTrainerAdam", "nnUNetTrainer",
    ]  # fmt: skip
    assert trainer_class("nnUNetTrainer_100epochs").__name__ == "nnUNetTrainer_100epochs"
    assert not capsys.readouterr().err
    assert trainer_class("nnUNetTrainerOfAnotherSite").__name__ == "nnUNetTrainer"
    assert "nnUNetTrainerOfAnotherSite" in capsys.readouterr().err


def test_an_imported_nnunet_is_trained_by_nnunet_and_imported_again(tmp_path: Path) -> None:
    settings = free_settings(tmp_path / "home", tmp_path / "none", ("triton",))
    settings.home.mkdir()
    write_phantoms(tmp_path / "p", 2, 3, labels="truth", grid=PhantomGrid(32, 12.0))
    here = Places(settings, FlowSettings())
    with Catalog.open(settings.catalog_url) as catalog:
        import_folder(
            tmp_path / "p", "p", "phantoms", catalog=catalog, store=CaseStore(settings.store)
        )
        models = model_store(here)
        scheme = read_scheme("abdomen_atlas_1_0")
        choices = NnunetChoices(name="theirs", orientation="LPS")
        with models.incoming() as incoming:
            imported = import_nnunet(
                untrained(tmp_path / "r"), incoming / "theirs", choices, scheme
            )
            models.add(incoming / "theirs", catalog, provenance=imported.provenance)
        repository_of(settings).install(models.folder("theirs", 0))
        plan = plan_versions(here, catalog, ["theirs"], [])
        assert (plan.parents, plan.versions) == ({"theirs": 0}, {"theirs": 1})

        tuning = FinetuningRequest("theirs", parent=0, version=1, steps=2, validation_share=0.0)
        steps: list[int] = []
        assert tune(tuning, here, catalog, lambda step, _: steps.append(step)).refused == ""
        first, second = models.folder("theirs", 0), models.folder("theirs", 1)
        before, after = read_spec(first), read_spec(second)
        assert after.model_copy(update={"version": 0, "sha256": before.sha256}) == before
        assert after.sha256 != before.sha256
        assert read_origin(second).values == {"liver": 1, "spleen": 2}
        old, new = network_of(first, "fold_0"), network_of(second, "fold_0")
        change = [float((new[name] - old[name]).abs().max()) for name in old]
        assert 0 < max(change) < 0.1  # from its own weights, heads included
        (model,) = (m for m in catalog.models("theirs") if m.spec.version == 1)
        assert model.parent == before.ref
        assert model.provenance["trainable"] == "nnunet"

        # Done is done; and of what nnU-Net knows nothing, it is not told.
        assert tune(tuning, here, catalog, lambda *_: pytest.fail("trained again")).refused == ""
        with pytest.raises(ConfigurationError, match="no field 'batch_size'"):
            from atlas_flows.models import TrainingOrder, train_version

            order = TrainingOrder(None, parent=("theirs", 0), overrides={"batch_size": 9})
            train_version(replace(order, version=7), here, catalog, models, lambda *_: None)

        # An organ that nobody has labelled: nothing is trained, and what to do is said.
        write_phantoms(tmp_path / "q", 1, 5, labels="truth", grid=PhantomGrid(32, 12.0))
        for mask in (tmp_path / "q").rglob("spleen.nii.gz"):
            mask.unlink()
        import_folder(
            tmp_path / "q", "q", "phantoms", catalog=catalog, store=CaseStore(settings.store)
        )
        only = replace(order, overrides={}, datasets=("q",), version=8, validation_share=0.0)
        with pytest.raises(InvalidInput, match=r"has a label of spleen.*import or draw some"):
            train_version(only, here, catalog, models, lambda *_: pytest.fail("trained"))
        assert models.versions("theirs") == {0, 1}
