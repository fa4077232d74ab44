"""Training on assembled maps: what assembly settled is learnt, with the weight of its source."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from atlas_core.assembly import Assemblies, PseudoLabelMap, assemble_case, choose_labels
from atlas_core.errors import InvalidInput
from atlas_core.organs import ABDOMEN_ATLAS
from atlas_core.records import LabelSource, Reading
from atlas_models.config import LabelWeights, TrainingConfig
from atlas_models.training import LabelChoice, choose_cases, load_cases
from labelled_site import LabelledSite, cube, open_site

CONFIG = TrainingConfig(
    name="tiny", architecture="unet", channels=(8, 16), organs=("liver", "spleen", "stomach"),
    spacing_mm=(5.0, 5.0, 10.0), patch=(8, 8, 8), steps=1, learning_rate=1e-2,
    label_weights=LabelWeights(original=1.0, revised=1.0, pseudo=0.25),
)  # fmt: skip
EVERY = tuple(LabelSource)


@pytest.fixture
def site(tmp_path: Path) -> Iterator[LabelledSite]:
    """One case that is assembled, whose revised liver overlaps the pseudo spleen, and another."""
    site = open_site(tmp_path)
    with site.catalog:
        case = site.add_case("a")
        masks = {"spleen": cube(2, 6), "stomach": cube(8, 10)}
        ensemble = site.add_prediction("a", masks)
        site.add_label("a", "liver", LabelSource.REVISED, cube(0, 4))
        path = site.store.pseudo_label_path("a", Reading.PAPER, ensemble)
        prediction = PseudoLabelMap(Reading.PAPER, ensemble, site.store.relative(path))
        inputs = choose_labels(case, site.catalog.labels("a"), prediction, {}, ABDOMEN_ATLAS)
        Assemblies(site.catalog).record(assemble_case(site.store, inputs))
        site.add_case("b")
        site.add_label("b", "liver", LabelSource.ORIGINAL, cube(0, 4))
        yield site


def test_the_assembled_map_is_learnt_with_the_weights_of_its_sources(site: LabelledSite) -> None:
    assembly = Assemblies(site.catalog).current("a")
    assert assembly is not None
    chosen = choose_cases(site.catalog, CONFIG, sources=EVERY, labels=LabelChoice.ASSEMBLED)
    assert [case.case.id for case in chosen] == ["a"]  # the other was never assembled
    assert {label.sha256 for label in chosen[0].labels} == {assembly.sha256}
    stored = load_cases(site.store, chosen, CONFIG, validation_share=0.0, scheme=ABDOMEN_ATLAS)
    (case,) = stored.training
    assert not stored.refused
    assert [float(w) for w in case.weight] == [1.0, 0.25, 0.25]
    liver, spleen = (np.asarray(case.target[organ]) != 0 for organ in (0, 1))
    assert liver.any()
    assert spleen.any()
    assert not (liver & spleen).any()


def test_the_label_files_are_learnt_unless_asked_otherwise(site: LabelledSite) -> None:
    chosen = choose_cases(site.catalog, CONFIG, sources=EVERY)
    assert [case.case.id for case in chosen] == ["a", "b"]
    (case, _) = load_cases(
        site.store, chosen, CONFIG, validation_share=0.0, scheme=ABDOMEN_ATLAS
    ).training
    liver, spleen = (np.asarray(case.target[organ]) != 0 for organ in (0, 1))
    assert (liver & spleen).any()  # nobody settled it


def test_sources_that_are_not_wanted_are_left_out_of_assembled_maps(site: LabelledSite) -> None:
    (case,) = choose_cases(site.catalog, CONFIG, labels=LabelChoice.ASSEMBLED)
    assert [label.organ for label in case.labels] == ["liver"]


def test_without_assembled_cases_the_remedy_is_told(site: LabelledSite) -> None:
    site.catalog.delete_case("a")
    with pytest.raises(InvalidInput, match="atlasloop assemble"):
        choose_cases(site.catalog, CONFIG, labels=LabelChoice.ASSEMBLED)
