"""Ensembles on the real Triton and attention service: made, changed, used, killed in between.

What serves is what the ensembles need and nothing else, whatever else is imported; and a change
that is killed at any point leaves the ensemble of before or the one of after.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from atlas_core.catalog import Catalog, PromotionKind, find_ensemble
from atlas_core.ensembles import EnsembleState, MemberRole
from atlas_core.errors import Conflict, InvalidInput, NotFound
from atlas_core.store import CaseStore
from atlas_embedded.stack import up
from atlas_embedded.triton_models import TritonModels, repository_of
from atlas_flows.cli import app
from atlas_flows.models import ModelStore, Site, ensembles
from atlas_flows.models.ensembles import EnsembleOrder
from atlas_flows.models.promotion import PromotionRefused, PromotionRequest, promote, rollback
from atlas_flows.scoring import ScoreRequest
from atlas_flows.scoring.case_scoring import Patience, await_ensemble, members_on_record
from atlasloop.client import AttentionClient, AttentionServiceError, ServiceInfo
from known_models import import_true_cases
from stack import Stack, open_stack
from triton_server import export_tiny_model
from typer.testing import CliRunner

pytestmark = pytest.mark.stack

THIRD = "conv_c"


@pytest.fixture(scope="module")
def ensemble_stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """Two models serve, as in a home of before; the ensembles change here."""
    root = tmp_path_factory.mktemp("ensembles")
    for seed, name in enumerate(("conv_a", "conv_b")):
        export_tiny_model(root / "shipped" / name, name, seed=seed)
    with open_stack(root / "home", root / "shipped", ("triton", "attention")) as opened:
        yield opened


@pytest.fixture(scope="module")
def catalog(ensemble_stack: Stack, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Catalog]:
    settings = ensemble_stack.settings
    with Catalog.open(settings.catalog_url) as opened:
        folder, store = tmp_path_factory.mktemp("cts"), CaseStore(settings.store)
        import_true_cases(folder, 2, opened, store, settings.attention_address)
        yield opened


@pytest.fixture
def site(ensemble_stack: Stack, catalog: Catalog) -> Iterator[Site]:
    """The ensemble `default` of the two in use, before and after; a third lies in the store."""
    settings = ensemble_stack.settings
    triton = TritonModels(
        settings.triton_grpc, repository_of(settings), 60.0, tls=settings.triton_client_tls
    )
    models = ModelStore(settings.home / "models", settings.models_dir, triton.repository)
    if not models.folder(THIRD, 0).exists():
        export_tiny_model(models.folder(THIRD, 0), THIRD, seed=7)
    store = CaseStore(settings.store)
    one = Site(triton, catalog, store, settings.attention_address, 0.01, models, min_cases=1)
    ensembles.reconcile(one)
    yield one
    voices = [(models.find(name, 0)[0], MemberRole.VOICE) for name in ("conv_a", "conv_b")]
    both = ensembles.ensemble_of("default", voices)
    ensembles.change(EnsembleOrder(both, EnsembleState.IN_USE, "reset"), one)
    assert in_use(one) == ["conv_a@0", "conv_b@0"]


def info(site: Site) -> ServiceInfo:
    with AttentionClient(site.attention) as client:
        return client.info()


def in_use(site: Site) -> list[str]:
    return [f"{model.name}@{model.version}" for model in info(site).models]


def loaded(site: Site) -> set[str]:
    told = info(site)
    return {f"{m.name}@{m.version}" for m in (*told.models, *told.older_models)}


def grown(site: Site, name: str = THIRD) -> EnsembleOrder:
    known = find_ensemble(site.catalog)
    more = [(ensembles.member_spec(name, None, site), MemberRole.VOICE)]
    wanted = ensembles.with_members(known.ensemble, more, site)
    return EnsembleOrder(wanted, known.state, f"added {name}", "a third voice")


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def trial_of(site: Site, *names: str) -> EnsembleOrder:
    members = [(ensembles.member_spec(name, None, site), MemberRole.VOICE) for name in names]
    return EnsembleOrder(ensembles.ensemble_of("trial", members), EnsembleState.IDLE, "created")


def atlasloop(stack: Stack, *arguments: str) -> str:
    done = CliRunner().invoke(app, list(arguments), env=stack.settings.environment())
    assert done.exit_code == 0, f"{arguments}: {done.stderr} {done.exception!r}"
    return done.stdout


def test_what_is_imported_changes_nothing_that_serves(
    site: Site, ensemble_stack: Stack, tmp_path: Path
) -> None:
    """Scoring does not wait for it either."""
    export_tiny_model(tmp_path / "conv_d", "conv_d", seed=9)
    site.models.add(tmp_path / "conv_d", site.catalog)
    with AttentionClient(site.attention) as client:
        request, at_once = ScoreRequest(), Patience(total_s=0.0)
        found = await_ensemble(client, request, members_on_record(site.catalog), at_once)
    assert [model.name for model in found.models] == ["conv_a", "conv_b"]
    assert found.key == find_ensemble(site.catalog).ensemble.key
    up(ensemble_stack.settings)
    assert in_use(site) == ["conv_a@0", "conv_b@0"]
    assert loaded(site) == {"conv_a@0", "conv_b@0"}


def test_a_model_joins_and_leaves_by_commands(site: Site, ensemble_stack: Stack) -> None:
    processes = len(ensemble_stack.pids("triton"))
    told = json.loads(
        atlasloop(ensemble_stack, "ensemble", "add", "default", THIRD, "--why", "third", "--json")
    )
    assert [one["model"]["name"] for one in told["ensemble"]["members"]][-1] == THIRD
    assert in_use(site) == ["conv_a@0", "conv_b@0", "conv_c@0"]
    assert len(ensemble_stack.pids("triton")) > processes
    atlasloop(ensemble_stack, "ensemble", "remove", "default", THIRD)
    assert in_use(site) == ["conv_a@0", "conv_b@0"]
    assert loaded(site) == {"conv_a@0", "conv_b@0"}
    # Its process goes, and its memory with it.
    until(lambda: len(ensemble_stack.pids("triton")) == processes)
    shown = json.loads(atlasloop(ensemble_stack, "ensemble", "show", "--json"))
    assert shown["state"] == "in_use"
    assert [entry["action"] for entry in shown["history"]][-2:] == [
        f"added {THIRD}", f"removed {THIRD}",
    ]  # fmt: skip
    assert shown["history"][-2]["why"] == "third"
    with pytest.raises(Conflict, match="no voice left"):
        ensembles.removed(find_ensemble(site.catalog).ensemble, ("conv_a", "conv_b"), site)


def test_another_ensemble_is_loaded_beside_and_put_to_use(
    site: Site, ensemble_stack: Stack
) -> None:
    case = site.catalog.cases()[0].id
    ensembles.change(trial_of(site, "conv_a", THIRD), site)
    assert THIRD not in {name.partition("@")[0] for name in loaded(site)}
    with AttentionClient(site.attention) as client:
        with pytest.raises(AttentionServiceError, match="ensemble trial is not loaded"):
            client.stream_case(case, ensemble="trial")
        atlasloop(ensemble_stack, "ensemble", "use", "trial", "--beside")
        assert in_use(site) == ["conv_a@0", "conv_b@0"]
        with client.stream_case(case, ensemble="trial") as stream:
            result = stream.collect().result
        assert [model.name for model in result.models] == ["conv_a", THIRD]
        assert result.ensemble == find_ensemble(site.catalog, "trial").ensemble.key
    atlasloop(ensemble_stack, "ensemble", "use", "trial")
    assert in_use(site) == ["conv_a@0", "conv_c@0"]
    assert loaded(site) == {"conv_a@0", "conv_c@0"}
    assert find_ensemble(site.catalog).ensemble.name == "trial"
    # A server that starts again loads only what is needed, and says so by itself.
    ensemble_stack.kill("triton")
    up(ensemble_stack.settings)
    assert loaded(site) == {"conv_a@0", "conv_c@0"}


def test_a_first_version_is_judged_joins_and_is_taken_back(site: Site) -> None:
    _, exported = site.models.find(THIRD, 0)
    strict = replace(site, min_cases=3)
    with pytest.raises(PromotionRefused, match=r"too few cases.*at least 3.*got 2"):
        promote(exported, strict, PromotionRequest())
    with pytest.raises(PromotionRefused, match=r"worse than what a first version needs.*1\.5"):
        promote(exported, replace(site, floor=1.5), PromotionRequest())
    assert loaded(site) == {"conv_a@0", "conv_b@0"}
    forced = promote(exported, replace(strict, floor=1.5), PromotionRequest(force=True))
    assert forced.forced
    assert in_use(site) == ["conv_a@0", "conv_b@0", "conv_c@0"]
    assert find_ensemble(site.catalog).action == f"added {THIRD}"
    back = rollback(THIRD, site, why="enough")
    assert (back.kind, back.model.name) == (PromotionKind.REMOVED, THIRD)
    assert in_use(site) == ["conv_a@0", "conv_b@0"]
    assert loaded(site) == {"conv_a@0", "conv_b@0"}
    promote(exported, site, PromotionRequest())  # good enough by itself
    assert in_use(site) == ["conv_a@0", "conv_b@0", "conv_c@0"]


def test_a_member_that_is_missing_is_named(site: Site) -> None:
    ensembles.change(grown(site), site)
    site.triton.unload(THIRD)
    with pytest.raises(AttentionServiceError, match=r"not complete.*without conv_c"):
        info(site)
    ensembles.reconcile(site)
    assert in_use(site) == ["conv_a@0", "conv_b@0", "conv_c@0"]


KILLED = """
import os, signal, sys
from atlas_core.catalog import Catalog, find_ensemble
from atlas_core.ensembles import MemberRole
from atlas_flows.models import Site, ensembles
from atlas_flows.settings import Places

def die(*_):
    os.kill(os.getpid(), signal.SIGKILL)

here = Places.read()
with Catalog.open(here.catalog_url) as catalog:
    site = Site.of(here, catalog)
    known = find_ensemble(catalog)
    more = [(ensembles.member_spec("conv_c", None, site), MemberRole.VOICE)]
    wanted = ensembles.with_members(known.ensemble, more, site)
    order = ensembles.EnsembleOrder(wanted, known.state, "added conv_c")
    if sys.argv[1] == "before it is on record":
        ensembles._record = die
    if sys.argv[1] == "once it is on record":
        ensembles.bring = die
    if sys.argv[1] == "while models are loaded again":
        load = type(site.triton).load
        def load_one(triton, name):
            load(triton, name)
            if name == "conv_a":
                die()
        type(site.triton).load = load_one
    ensembles.change(order, site)
"""


@pytest.mark.parametrize(
    ("when", "serves"),
    [
        ("before it is on record", "conv_a@0 conv_b@0"),
        ("once it is on record", "conv_a@0 conv_b@0"),
        ("while models are loaded again", "conv_a@0 conv_b@0 conv_c@0"),
    ],
)
def test_a_change_that_is_killed_is_undone_or_completed(
    site: Site, ensemble_stack: Stack, when: str, serves: str
) -> None:
    ensembles.change(trial_of(site, "conv_a"), site)  # from now on ensembles are described
    command = [sys.executable, "-c", KILLED, when]
    killed = subprocess.run(command, env=ensemble_stack.environment(), check=False)
    assert killed.returncode == -signal.SIGKILL
    assert in_use(site) == serves.split()
    ensembles.reconcile(site)
    members = [f"{model.name}@0" for model in find_ensemble(site.catalog).ensemble.voices]
    assert in_use(site) == members
    assert loaded(site) == set(members)
    ensembles.change(
        EnsembleOrder(
            find_ensemble(site.catalog, "trial").ensemble, EnsembleState.REMOVED, "removed"
        ),
        site,
    )


def test_orders_that_make_no_sense_are_refused(site: Site, tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="named twice"):
        ensembles.change(grown(site, "conv_a"), site)
    with pytest.raises(NotFound, match="no model conv_z"):
        grown(site, "conv_z")
    export_tiny_model(tmp_path / "alien", "alien", organs=("antenna",))
    site.models.add(tmp_path / "alien", site.catalog)
    with pytest.raises(InvalidInput, match=r"alien knows no organ of this atlas.*liver"):
        ensembles.change(grown(site, "alien"), site)
    told: list[str] = []
    export_tiny_model(tmp_path / "more", "more", organs=("liver", "spleen", "antenna"))
    ensembles.organs_outside(site.models.add(tmp_path / "more", site.catalog), site, told.append)
    assert told == ["more@0: antenna is no organ of this atlas; it takes no part"]
    assert loaded(site) == {"conv_a@0", "conv_b@0"}
