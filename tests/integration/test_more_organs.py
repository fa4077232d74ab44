"""An atlas with the 25 organs of AbdomenAtlas 1.1, once around: nothing is tied to nine.

Labels of 25 organs are painted into phantoms, imported, learnt from for a few steps, served by a
real Triton, scored through the attention service, ranked and assembled.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from atlas_attention.server import AttentionServer
from atlas_attention.settings import AttentionSettings
from atlas_core.catalog import Catalog, choose_organs, extend_organs
from atlas_core.errors import ConfigurationError
from atlas_core.imaging import Volume, read_label, write_volume
from atlas_core.importing import import_folder
from atlas_core.organs import OrganScheme, read_scheme
from atlas_core.phantoms import PHANTOM_ORGANS, PhantomGrid, make_phantom
from atlas_core.records import LabelSource, Reading
from atlas_core.store import CaseStore
from atlas_embedded.triton_environment import TritonEnvironment
from atlas_flows.assembly import AssemblyRequest
from atlas_flows.assembly.case_assembly import AssemblyRun, assemble_shard, plan_assembly
from atlas_flows.runs import Outcome, ProgressCounter
from atlas_flows.scoring import ScoreRequest
from atlas_flows.scoring.case_scoring import (
    Patience,
    ScoringRun,
    await_ensemble,
    plan_scoring,
    score_shard,
)
from atlas_models.config import TrainingConfig
from atlas_models.serving import CpuServing, TritonRepository
from atlas_models.training import TrainRequest, train_from_catalog
from atlasloop.client import AttentionClient
from ports import free_port
from triton_server import TritonServer

SCHEME = read_scheme("abdomen_atlas_1_1")
ADDED = tuple(organ for organ in SCHEME if organ.name not in PHANTOM_ORGANS)

CONFIG = TrainingConfig(
    name="tiny",
    architecture="unet",
    channels=(8, 16),
    spacing_mm=(12.0, 12.0, 12.0),
    patch=(32, 32, 32),
    steps=3,
    learning_rate=1e-2,
)
"""Names no organs: it is of all that the atlas has."""


@dataclass(frozen=True)
class Site:
    catalog: Catalog
    store: CaseStore
    labelled: str
    unlabelled: str


def painted(seed: int) -> tuple[Volume, np.ndarray]:
    """A phantom with all 25 organs: what it does not have are cubes in its fat and muscle."""
    phantom = make_phantom(seed, grid=PhantomGrid(48, 8.0))
    labels = np.array(phantom.truth)
    free = np.argwhere((labels == 0) & (phantom.ct > -150))
    for number, organ in enumerate(ADDED):
        i, j, k = free[(number + 1) * len(free) // (len(ADDED) + 2)]
        labels[i : i + 3, j : j + 3, k : k + 2] = organ.label
    return Volume(phantom.ct, phantom.geometry), labels


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """Two cases, one of them with labels of all 25 organs."""
    folder = tmp_path_factory.mktemp("more-organs")
    for seed, name in ((1, "labelled"), (2, "unlabelled")):
        ct, labels = painted(seed)
        (folder / "in" / name).mkdir(parents=True)
        write_volume(folder / "in" / name / "ct.nii.gz", ct.voxels, ct.geometry)
        if name == "labelled":
            write_volume(folder / "in" / name / "combined_labels.nii.gz", labels, ct.geometry)
    store = CaseStore(folder / "store")
    with Catalog.open(f"sqlite:///{folder}/catalog.sqlite") as catalog:
        choose_organs(catalog, SCHEME)
        summary = import_folder(
            folder / "in", "ours", catalog=catalog, store=store, licence="CC0-1.0"
        )
        taken = {Path(one.source).parts[0]: one for one in summary.taken}
        assert set(taken["labelled"].organs) == set(SCHEME.names)
        assert catalog.dataset("ours").licence == "CC0-1.0"
        yield Site(catalog, store, taken["labelled"].case_id, taken["unlabelled"].case_id)


@pytest.fixture(scope="module")
def triton(
    site: Site, triton_environment: TritonEnvironment, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[TritonServer]:
    """A network of 25 outputs that learnt from these labels."""
    folder = tmp_path_factory.mktemp("more-organs-triton")
    (folder / "tiny.yaml").write_text(CONFIG.model_dump_json())
    request = TrainRequest(
        config=str(folder / "tiny.yaml"), run_folder=folder / "run", validation_share=0.0,
        accelerator="cpu", output=folder / "tiny",
    )  # fmt: skip
    made = train_from_catalog(request, store=site.store, catalog=site.catalog)
    assert made is not None
    assert made.spec.organs == SCHEME.names
    repository = TritonRepository(folder / "repository", CpuServing(cache_dir=folder / "cache"))
    repository.install(folder / "tiny")
    server = TritonServer(triton_environment, folder / "repository", folder / "triton.log")
    server.start(["tiny"])
    yield server
    server.stop()


@contextlib.contextmanager
def attention(site: Site, triton: TritonServer, scheme: OrganScheme) -> Iterator[AttentionClient]:
    settings = AttentionSettings(
        listen=f"127.0.0.1:{free_port()}",
        metrics_listen="",
        triton=triton.address,
        store=site.store.root,
        organs=scheme,
        stop_grace_s=0.0,
    )
    with AttentionServer(settings), AttentionClient(settings.listen) as client:
        yield client


def nobody(*_: object) -> None:
    """Watches a run."""


def test_an_atlas_of_25_organs_goes_once_around(site: Site, triton: TritonServer) -> None:
    with attention(site, triton, SCHEME) as client:
        ensemble = await_ensemble(client, ScoreRequest(), {}, Patience())
        assert dict(ensemble.labels) == {organ.name: organ.label for organ in SCHEME}
        plan = plan_scoring(ScoreRequest(), ensemble, site.catalog, site.store)
        run = ScoringRun(plan, client, site.catalog, site.store, ProgressCounter(2, nobody))
        outcomes = score_shard(run, plan.cases)
        assert [one.outcome for one in outcomes] == [Outcome.SCORED] * 2, outcomes
    ranked = {case.case_id: case for case in site.catalog.ranking(Reading.PAPER)}
    assert sorted(size.organ for size in ranked[site.unlabelled].organs) == sorted(SCHEME.names)
    assert sorted(ranked[site.labelled].left_out) == sorted(SCHEME.names)

    request = AssemblyRequest()
    cases = plan_assembly(request, site.catalog, site.store).cases
    assembly = AssemblyRun(request, site.catalog, site.store, ProgressCounter(2, nobody))
    assert [one.outcome for one in assemble_shard(assembly, cases)] == [Outcome.ASSEMBLED] * 2
    from atlas_core.assembly import Assemblies

    made = Assemblies(site.catalog).of_cases([site.labelled, site.unlabelled])
    for case_id, source in (
        (site.labelled, LabelSource.ORIGINAL),
        (site.unlabelled, LabelSource.PSEUDO),
    ):
        assert {one.organ: one.source for one in made[case_id].organs} == dict.fromkeys(
            SCHEME.names, source
        )
    combined = read_label(site.store.path(made[site.labelled].path)).voxels
    for organ in ADDED:
        assert (combined == organ.label).any(), organ.name


def test_a_service_with_other_organs_scores_nothing(site: Site, triton: TritonServer) -> None:
    """As one that still runs when the atlas was extended: both are named, and what to do."""
    gland = SCHEME["prostate"].model_copy(update={"name": "seminal_vesicle", "label": 77})
    extended = OrganScheme(name="ours", organs=(*SCHEME.organs, gland))
    with attention(site, triton, SCHEME) as client:
        extend_organs(site.catalog, extended)
        ensemble = await_ensemble(client, ScoreRequest(), {}, Patience())
        with pytest.raises(ConfigurationError, match=r"ours \(26 .*abdomen_atlas_1_1 .*anew"):
            plan_scoring(ScoreRequest(), ensemble, site.catalog, site.store)
    # The cases that are there count as unlabelled for the new organ.
    plan = plan_assembly(AssemblyRequest(), site.catalog, site.store)
    assert set(plan.cases) == {site.labelled, site.unlabelled}
    with attention(site, triton, extended) as client:
        ensemble = await_ensemble(client, ScoreRequest(), {}, Patience())
        plan_scoring(ScoreRequest(), ensemble, site.catalog, site.store)
