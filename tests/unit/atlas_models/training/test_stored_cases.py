"""Training cases out of catalog and store, and the whole way from there to an exported model."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
from atlas_core.catalog import Catalog
from atlas_core.errors import ConfigurationError, InvalidInput, NotFound, UnknownLabel
from atlas_core.imaging import Volume, content_sha256
from atlas_core.organs import ABDOMEN_ATLAS
from atlas_core.phantoms import Phantom, PhantomGrid, make_phantom
from atlas_core.records import Case, Dataset, Label, LabelSource
from atlas_core.store import CaseStore
from atlas_models.config import LabelWeights, TrainingConfig
from atlas_models.exporting.weights import network_from
from atlas_models.serving import read_spec
from atlas_models.train_command import main, progress_bar
from atlas_models.training import (
    TrainOutcome,
    TrainRequest,
    choose_cases,
    load_cases,
    train_from_catalog,
)
from atlas_models.training.stored_cases import is_validation

pytestmark = pytest.mark.slow

CONFIG = TrainingConfig(
    name="tiny",
    architecture="unet",
    channels=(8, 16),
    organs=("liver", "spleen", "stomach"),
    spacing_mm=(16.0, 16.0, 16.0),
    patch=(16, 16, 16),
    steps=4,
    learning_rate=1e-2,
    validate_every=2,
)
ORIGINAL, REVISED, PSEUDO = LabelSource.ORIGINAL, LabelSource.REVISED, LabelSource.PSEUDO


@dataclass(frozen=True)
class Site:
    """A store with its catalog."""

    folder: Path
    store: CaseStore
    catalog: Catalog

    def add_case(self, number: int, dataset: str) -> Phantom:
        phantom = make_phantom(number, grid=PhantomGrid(40, 10.0))
        ct = Volume(phantom.ct, phantom.geometry)
        self.catalog.add_dataset(Dataset(name=dataset))
        self.store.write_ct(f"case-{number}", ct)
        self.catalog.add_case(
            Case(
                id=f"case-{number}", dataset=dataset, content_sha256=content_sha256(ct),
                shape=phantom.geometry.shape, affine=phantom.geometry.affine,
                imported_at=datetime.now(UTC),
            )
        )  # fmt: skip
        return phantom

    def add_label(
        self, number: int, organ: str, source: LabelSource, phantom: Phantom, mask: np.ndarray
    ) -> Label:
        case_id = f"case-{number}"
        stored = self.store.write_label(case_id, organ, source, Volume(mask, phantom.geometry))
        label = Label(
            case_id=case_id, organ=organ, source=source, path=stored.path, value=1,
            sha256=stored.sha256, voxels=int(mask.sum()), volume_ml=1.0,
            created_at=datetime.now(UTC),
        )  # fmt: skip
        self.catalog.add_labels([label])
        return label


def mask_of(phantom: Phantom, organ: str) -> np.ndarray:
    return np.asarray(phantom.truth == ABDOMEN_ATLAS[organ].label, dtype=np.uint8)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """Case 1: liver original and revised, spleen pseudo. Case 2 (other dataset): spleen revised.
    Case 3: no label."""
    folder = tmp_path_factory.mktemp("site")
    with Catalog.open(f"sqlite:///{folder}/catalog.sqlite") as catalog:
        site = Site(folder, CaseStore(folder / "store"), catalog)
        first, second = site.add_case(1, "ours"), site.add_case(2, "theirs")
        site.add_case(3, "ours")
        site.add_label(1, "liver", REVISED, first, np.zeros_like(first.truth))
        site.add_label(1, "liver", ORIGINAL, first, mask_of(first, "liver"))
        site.add_label(1, "spleen", PSEUDO, first, mask_of(first, "spleen"))
        site.add_label(2, "spleen", REVISED, second, mask_of(second, "spleen"))
        yield site


def test_the_best_label_of_every_organ_counts(site: Site) -> None:
    every = tuple(LabelSource)
    first, second = choose_cases(site.catalog, CONFIG, sources=every)
    assert [(label.organ, label.source) for label in first.labels] == [
        ("liver", ORIGINAL),
        ("spleen", PSEUDO),
    ]
    assert [(label.organ, label.source) for label in second.labels] == [("spleen", REVISED)]
    assert [c.case.id for c in choose_cases(site.catalog, CONFIG, datasets=["theirs"])] == [
        "case-2"
    ]
    (only,) = choose_cases(site.catalog, CONFIG, datasets=["ours"])
    assert [label.organ for label in only.labels] == ["liver"]


def test_labels_of_weight_zero_and_other_organs_are_not_looked_at(site: Site) -> None:
    config = CONFIG.model_copy(update={"label_weights": LabelWeights(original=0.0)})
    chosen = choose_cases(site.catalog, config)
    assert {label.source for case in chosen for label in case.labels} == {REVISED}
    with pytest.raises(NotFound, match="nowhere"):
        choose_cases(site.catalog, CONFIG, datasets=["nowhere"])
    with pytest.raises(InvalidInput, match=r"no case has a label.*stomach"):
        choose_cases(site.catalog, CONFIG.model_copy(update={"organs": ("stomach",)}))


def test_cases_carry_weights_and_volumes_and_come_back_from_the_cache(
    site: Site, tmp_path: Path
) -> None:
    config = CONFIG.model_copy(update={"label_weights": LabelWeights(revised=0.25, pseudo=0.5)})
    chosen = choose_cases(site.catalog, config, sources=tuple(LabelSource))
    fresh = load_cases(site.store, chosen, config, validation_share=0.0, scheme=ABDOMEN_ATLAS)
    assert [case.weight.tolist() for case in fresh.training] == [[1.0, 0.5, 0.0], [0.0, 0.25, 0.0]]
    liver_ml = fresh.training[0].target[0].sum() / 255.0 * 16.0**3 / 1000.0
    phantom = make_phantom(1, grid=PhantomGrid(40, 10.0))
    assert liver_ml == pytest.approx(phantom.volumes_ml()["liver"], rel=0.05)
    for _ in range(2):  # written, then read
        kept = load_cases(
            site.store, chosen, config, validation_share=0.0, cache=tmp_path, scheme=ABDOMEN_ATLAS
        )
        for case, other in zip(kept.training, fresh.training, strict=True):
            assert np.array_equal(case.ct, other.ct)
            assert np.array_equal(case.target, other.target)
            assert np.array_equal(case.weight, other.weight)
    assert len(list(tmp_path.iterdir())) == 2  # nothing half-written beside them
    assert kept.data_key == fresh.data_key
    fewer = choose_cases(site.catalog, config)
    other = load_cases(
        site.store, fewer, config, validation_share=0.0, cache=tmp_path, scheme=ABDOMEN_ATLAS
    )
    assert other.data_key != fresh.data_key
    assert other.training[0].weight.tolist() == [1.0, 0.0, 0.0]


def test_the_split_stays_when_cases_come() -> None:
    ids = [f"case-{number}" for number in range(2000)]
    held = {case for case in ids if is_validation(case, 0.2)}
    assert 0.17 < len(held) / len(ids) < 0.23
    assert held > {case for case in ids if is_validation(case, 0.1)}
    assert not any(is_validation(case, 0.0) for case in ids)


def test_a_damaged_case_is_left_out_and_named(tmp_path: Path) -> None:
    with Catalog.open(f"sqlite:///{tmp_path}/catalog.sqlite") as catalog:
        site = Site(tmp_path, CaseStore(tmp_path / "store"), catalog)
        labels = {}
        for number in (1, 2, 3, 4):
            phantom = site.add_case(number, "ours")
            mask = mask_of(phantom, "liver") * (200 if number == 4 else 1)
            labels[number] = site.add_label(number, "liver", ORIGINAL, phantom, mask)
        site.store.ct_path("case-2").unlink()
        label_3 = site.store.path(labels[3].path)
        label_3.write_bytes(site.store.path(labels[1].path).read_bytes())
        chosen = choose_cases(catalog, CONFIG)
        found = load_cases(site.store, chosen, CONFIG, validation_share=0.0, scheme=ABDOMEN_ATLAS)
        assert [case.id for case in found.training] == ["case-1"]
        assert set(found.refused) == {"case-2", "case-3", "case-4"}
        assert (
            "case-3: liver (original): the label is not the file on record"
            in (found.refused["case-3"])
        )
        assert "200" in found.refused["case-4"]
        with pytest.raises(InvalidInput, match="3 refused"):
            load_cases(site.store, chosen[1:], CONFIG, validation_share=0.0, scheme=ABDOMEN_ATLAS)


# --- the whole way --------------------------------------------------------------------------------


LABELLED = CONFIG.model_copy(update={"organs": ("liver", "spleen")})


def request(folder: Path, **fields: object) -> TrainRequest:
    config = folder / "tiny.yaml"
    config.write_text(LABELLED.model_dump_json())  # JSON is YAML
    return TrainRequest.model_validate(
        {"config": str(config), "run_folder": folder / "run", "validation_share": 0.0,
         "accelerator": "cpu"} | fields
    )  # fmt: skip


@pytest.fixture(scope="module")
def outcome(site: Site, tmp_path_factory: pytest.TempPathFactory) -> TrainOutcome:
    found = train_from_catalog(
        request(tmp_path_factory.mktemp("m0")), store=site.store, catalog=site.catalog
    )
    assert found is not None
    return found


def test_training_ends_in_a_model_that_says_where_it_came_from(
    site: Site, outcome: TrainOutcome
) -> None:
    assert read_spec(outcome.folder) == outcome.spec
    assert outcome.spec.organs == LABELLED.organs
    assert network_from(outcome.folder)[1] == LABELLED
    record = json.loads((outcome.folder / "provenance.json").read_text())
    assert record["sha256"] == outcome.spec.sha256
    assert record["provenance"] == outcome.provenance
    on_record = {label.sha256 for label in site.catalog.labels("case-1", ORIGINAL)}
    assert {record["cases"]["case-1"]["labels"]["liver"]["sha256"]} == on_record
    assert outcome.provenance["original_labels"] == "1"
    assert outcome.provenance["revised_labels"] == "1"
    assert outcome.metrics["loss"] > 0
    assert outcome.refused == {}


def test_an_export_that_fails_leaves_what_was_there(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = request(tmp_path, overrides={"steps": 1})
    first = train_from_catalog(asked, store=site.store, catalog=site.catalog)
    assert first is not None
    before = {path.name: path.read_bytes() for path in first.folder.iterdir()}
    # A tolerance that nothing meets: the finished run is taken up and its export refused.
    monkeypatch.setattr("atlas_models.exporting.parity.PROBABILITY_TOLERANCE", -1.0)
    with pytest.raises(InvalidInput, match="differs from the network"):
        train_from_catalog(asked, store=site.store, catalog=site.catalog)
    assert {path.name: path.read_bytes() for path in first.folder.iterdir()} == before
    assert [path.name for path in first.folder.parent.iterdir() if path.name[0] == "."] == []


def test_finetuning_says_what_it_started_from(
    site: Site, outcome: TrainOutcome, tmp_path: Path
) -> None:
    tuned = train_from_catalog(
        request(tmp_path, weights=outcome.folder, version=1, parent=outcome.spec.ref,
                overrides={"steps": 2, "learning_rate": 1e-4}),
        store=site.store, catalog=site.catalog,
    )  # fmt: skip
    assert tuned is not None
    assert tuned.spec.version == 1
    weights = (outcome.folder / "weights.safetensors").read_bytes()
    assert tuned.provenance["started_from_sha256"] == hashlib.sha256(weights).hexdigest()
    assert tuned.provenance["parent"] == str(outcome.spec.ref)
    assert tuned.spec.sha256 != outcome.spec.sha256


def test_weights_of_other_organs_are_refused_before_anything_is_written(
    site: Site, outcome: TrainOutcome, tmp_path: Path
) -> None:
    with pytest.raises(InvalidInput, match="other organs"):
        train_from_catalog(
            request(tmp_path, weights=outcome.folder, overrides={"organs": ["liver"]}),
            store=site.store, catalog=site.catalog,
        )  # fmt: skip
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("organs", "share", "told"),
    [
        (["liver", "stomach"], 0.0, "no case has a label of stomach"),
        # case-2, the only one with a spleen, is held out by its id
        (["liver", "spleen"], 0.5, "no case that is not held out has a label of spleen"),
    ],
)
def test_an_organ_that_nobody_has_labelled_is_refused_before_training(
    site: Site, tmp_path: Path, organs: list[str], share: float, told: str
) -> None:
    asked = request(tmp_path, overrides={"organs": organs}, validation_share=share)
    with pytest.raises(InvalidInput, match=told):
        train_from_catalog(asked, store=site.store, catalog=site.catalog)
    written = [path.name for path in (tmp_path / "run").rglob("*") if path.is_file()]
    assert set(written) <= {"ct.npy", "target.npy", "weight.npy"}  # prepared cases


def test_an_organ_that_the_atlas_does_not_have_is_refused(site: Site, tmp_path: Path) -> None:
    with pytest.raises(UnknownLabel, match=r"'nose'.*one of aorta"):
        train_from_catalog(
            request(tmp_path, overrides={"organs": ["nose"]}),
            store=site.store,
            catalog=site.catalog,
        )


def test_a_field_that_the_configuration_does_not_know_is_refused_with_those_it_knows(
    site: Site, tmp_path: Path
) -> None:
    with pytest.raises(ConfigurationError, match=r"no field stepz.*one of name, .*steps"):
        train_from_catalog(
            request(tmp_path, overrides={"stepz": 3}), store=site.store, catalog=site.catalog
        )
    assert not (tmp_path / "run").exists()


def test_without_organs_a_configuration_is_of_all_that_the_atlas_has() -> None:
    assert CONFIG.model_copy(update={"organs": ()}).of_atlas(ABDOMEN_ATLAS).organs == (
        ABDOMEN_ATLAS.names
    )


def test_the_command_trains_and_says_what_came_out(
    site: Site, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = request(tmp_path)
    arguments = [
        "--catalog", f"sqlite:///{site.folder}/catalog.sqlite", "--store", str(site.store.root),
        "--config", made.config, "--run", str(made.run_folder), "--validation-share", "0",
        "--accelerator", "cpu", "--set", "steps=2", "--source", "original",
        "--set", "organs=[liver]",
    ]  # fmt: skip
    assert main(arguments) == 0
    printed = json.loads(capsys.readouterr().out)
    assert read_spec(Path(printed["folder"])).name == "tiny"
    assert main([*arguments, "--set", "steps=none"]) == 1
    assert "tiny.yaml" in capsys.readouterr().err
    assert main([*arguments, "--set", "steps"]) == 1
    assert "FIELD=VALUE" in capsys.readouterr().err


def test_an_unknown_configuration_lists_those_that_ship(site: Site, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"demo/unet.*paper/nnunet"):
        train_from_catalog(
            request(tmp_path, config="demo/nothing"), store=site.store, catalog=site.catalog
        )


def test_a_progress_bar_can_be_stepped() -> None:
    from atlas_models.training import TrainingProgress

    bar, say = progress_bar("tiny")
    with bar:
        say(TrainingProgress(1, 2, 0.5, 1.0, 0.25))
    assert bar.tasks[0].completed == 1
    assert bar.tasks[0].fields["state"] == "loss 0.500, Dice 0.250"
