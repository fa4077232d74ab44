"""A new version beside the one in service: tried, judged, promoted, taken back, never in the way.

On the real Triton and attention service. The models are graphs of one line whose skill is known:
the truth of every case is what version 0 sees, a version with a shifted level sees less of it.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import onnx
import pytest
from atlas_core.catalog import (
    Catalog,
    PromotionKind,
    current_ensembles,
    evaluations,
    promotions,
)
from atlas_core.ensembles import EnsembleState
from atlas_core.errors import AtlasError, Conflict, NotFound, Unavailable
from atlas_core.records import Reading
from atlas_core.store import CaseStore
from atlas_embedded.model_trials import exclusive_change, in_use, tidy
from atlas_embedded.stack import up
from atlas_embedded.triton_models import TritonModels, repository_of
from atlas_flows.cli import app
from atlas_flows.models import ModelStore, Site
from atlas_flows.models.promotion import PromotionRefused, PromotionRequest, promote, rollback
from atlas_models.serving import GRAPH_FILE, read_spec
from atlasloop.client import AttentionClient
from known_models import NAME, export, import_true_cases
from stack import Stack, open_stack
from typer.testing import CliRunner

pytestmark = pytest.mark.stack

CASES = 3


@pytest.fixture(scope="module")
def lifecycle_stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """A stack of its own: what is in service changes here."""
    root = tmp_path_factory.mktemp("lifecycle")
    export(root / "models" / NAME, 0)
    with open_stack(root / "home", root / "models", ("triton", "attention")) as opened:
        yield opened


@pytest.fixture(scope="module")
def catalog(lifecycle_stack: Stack, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Catalog]:
    """Cases whose original labels are what version 0 predicts."""
    store = CaseStore(lifecycle_stack.settings.store)
    with Catalog.open(lifecycle_stack.settings.catalog_url) as opened:
        import_true_cases(
            tmp_path_factory.mktemp("cts"), CASES, opened, store, lifecycle_stack.attention_address
        )
        yield opened


@pytest.fixture
def site(lifecycle_stack: Stack, catalog: Catalog) -> Iterator[Site]:
    """Version 0 alone in service, before and after."""
    settings = lifecycle_stack.settings
    triton = TritonModels(
        settings.triton_grpc, repository_of(settings), 60.0, tls=settings.triton_client_tls
    )
    models = ModelStore(settings.home / "models", settings.models_dir, triton.repository)
    store = CaseStore(settings.store)
    yield Site(triton, catalog, store, settings.attention_address, 0.01, models, min_cases=1)
    repository = triton.repository
    repository.serve_only(NAME, [0], 0)
    triton.load(NAME)
    for spec in repository.installed(NAME):
        if spec.version:
            repository.remove(NAME, spec.version)


def in_service(site: Site) -> list[tuple[str, int]]:
    with AttentionClient(site.attention) as client:
        return [(model.name, model.version) for model in client.info().models]


def loaded(site: Site) -> set[int]:
    with AttentionClient(site.attention) as client:
        info = client.info()
        return {model.version for model in (*info.models, *info.older_models)}


def files(site: Site) -> dict[str, bytes]:
    root = site.repository.root
    return {
        str(path.relative_to(root)): path.read_bytes()
        for path in sorted(root.rglob("*"))
        if path.is_file() and not path.name.startswith(".")
    }


def test_as_good_a_version_is_promoted_and_taken_back(site: Site, tmp_path: Path) -> None:
    better = export(tmp_path / "m", 1)
    told: list[str] = []
    done = promote(better, site, PromotionRequest(why="the same again"), told.append)
    assert in_service(site) == [(NAME, 1)]
    assert loaded(site) == {0, 1}  # the way back is short
    assert (done.kind, done.previous_version, done.forced) == (PromotionKind.PROMOTED, 0, False)
    assert done.evidence["mean_dice"] == done.evidence["mean_dice_before"] > 0.99
    assert done.evidence["cases"] == CASES
    assert told

    back = rollback(NAME, site, why="only a test")
    assert in_service(site) == [(NAME, 0)]
    assert (back.kind, back.model.version, back.previous_version) == (
        PromotionKind.ROLLED_BACK, 0, 1,
    )  # fmt: skip
    last = promotions(site.catalog, NAME)[-2:]
    assert [p.why for p in last] == ["the same again", "only a test"]
    assert evaluations(site.catalog, read_spec(better).ref)[0].cases
    (ensemble,) = current_ensembles(site.catalog)
    assert (ensemble.state, ensemble.ensemble.voices) == (EnsembleState.IN_USE, (back.model,))
    with pytest.raises(Conflict, match="ensemble default would have no voice left"):
        rollback(NAME, site)
    assert in_service(site) == [(NAME, 0)]


def test_a_worse_version_is_refused_unless_forced(site: Site, tmp_path: Path) -> None:
    before = files(site)
    worse = export(tmp_path / "m", 2, level=3.0)
    with pytest.raises(PromotionRefused, match="worse than 0 in service"):
        promote(worse, site, PromotionRequest())
    assert in_service(site) == [(NAME, 0)]
    assert loaded(site) == {0}
    assert files(site) == before
    done = promote(worse, site, PromotionRequest(force=True))
    assert done.forced
    assert done.evidence["mean_dice"] < done.evidence["mean_dice_before"] - 0.01
    assert in_service(site) == [(NAME, 2)]
    assert promotions(site.catalog, NAME)[-1].forced


BROKEN = {
    "no graph": (b"not a graph", "cannot run"),
    "says the same to everything": (None, "the same to air and to noise"),
}


@pytest.mark.parametrize("what", BROKEN)
def test_a_broken_version_never_takes_down_the_one_in_service(
    site: Site, tmp_path: Path, what: str
) -> None:
    graph, why = BROKEN[what]
    broken = export(tmp_path / "m", 3, level=1e6, graph=graph)
    before = files(site)
    with Questions(site) as failures, pytest.raises(Unavailable, match=why):
        promote(broken, site, PromotionRequest())
    assert failures == []
    assert files(site) == before
    assert in_service(site) == [(NAME, 0)]
    assert loaded(site) == {0}


def test_a_version_that_was_being_tried_when_everything_stopped_is_left_behind(
    site: Site, lifecycle_stack: Stack, tmp_path: Path
) -> None:
    site.repository.stage(export(tmp_path / "m", 4, graph=b"not a graph"))  # and then a power cut
    lifecycle_stack.kill("triton")
    up(lifecycle_stack.settings)
    assert in_service(site) == [(NAME, 0)]
    assert loaded(site) == {0}
    assert [spec.version for spec in site.repository.served(NAME)] == [0]


def test_a_server_that_loads_what_it_finds_serves_beside_a_broken_version(
    site: Site, tmp_path: Path
) -> None:
    """As compose and the cluster start theirs, with nobody there to mend its repository."""
    broken = site.repository.stage(export(tmp_path / "m", 8, graph=b"not a graph"))
    site.triton.load(NAME)
    with pytest.raises(Unavailable, match="cannot run"):
        site.triton.prove(broken)
    site.triton.prove(next(s for s in site.repository.served(NAME) if s.version == 0))


KILLED_WHILE_IT_JUDGES = """
import os, signal, sys
from pathlib import Path
from atlas_core.catalog import Catalog
from atlas_flows.models import Site
from atlas_flows.models.promotion import PromotionRequest, promote
from atlas_flows.settings import Places

def die(line):
    if "evaluating" in line:
        os.kill(os.getpid(), signal.SIGKILL)

here = Places.read()
with Catalog.open(here.catalog_url) as catalog:
    promote(Path(sys.argv[1]), Site.of(here, catalog), PromotionRequest(), die)
"""


def kill_a_promotion(stack: Stack, exported: Path) -> None:
    command = [sys.executable, "-c", KILLED_WHILE_IT_JUDGES, str(exported)]
    killed = subprocess.run(command, env=stack.environment(), check=False)
    assert killed.returncode == -signal.SIGKILL


def test_a_killed_promotion_does_not_keep_its_model_loaded(
    site: Site, lifecycle_stack: Stack, tmp_path: Path
) -> None:
    """Each version takes hundreds of megabytes; there may be any number of kills."""
    before = files(site)
    kill_a_promotion(lifecycle_stack, export(tmp_path / "one", 11))
    assert loaded(site) == {0, 11}
    kill_a_promotion(lifecycle_stack, export(tmp_path / "two", 12))
    assert loaded(site) == {0, 12}  # before a version is loaded, the one left behind goes
    up(lifecycle_stack.settings)
    assert loaded(site) == {0}
    assert in_service(site) == [(NAME, 0)]
    kill_a_promotion(lifecycle_stack, export(tmp_path / "three", 13))
    with pytest.raises(PromotionRefused):
        promote(export(tmp_path / "worse", 14, level=3.0), site, PromotionRequest())
    assert loaded(site) == {0}
    assert {spec.version for spec in site.repository.served(NAME)} == {0}
    assert before.keys() <= files(site).keys()


def test_what_somebody_works_with_or_a_promotion_tries_is_not_unloaded(
    site: Site, lifecycle_stack: Stack, tmp_path: Path
) -> None:
    kill_a_promotion(lifecycle_stack, export(tmp_path / "one", 15))
    (trial,) = (spec for spec in site.repository.served(NAME) if spec.version == 15)
    with in_use(site.repository, [trial]), in_use(site.repository, [trial]):
        tidy(site.triton, lifecycle_stack.settings.catalog_url)
        assert loaded(site) == {0, 15}
    with exclusive_change(site.repository):  # as a promotion that is under way
        tidy(site.triton, lifecycle_stack.settings.catalog_url)
        assert loaded(site) == {0, 15}
    tidy(site.triton, lifecycle_stack.settings.catalog_url)
    assert loaded(site) == {0}
    with pytest.raises(NotFound, match="no longer loaded"), in_use(site.repository, [trial]):
        pass
    # What was promoted, and what served before it, stay: the way back is short.
    promote(export(tmp_path / "two", 16), site, PromotionRequest(limit=1))
    tidy(site.triton, lifecycle_stack.settings.catalog_url)
    assert loaded(site) == {0, 16}
    rollback(NAME, site)
    tidy(site.triton, lifecycle_stack.settings.catalog_url)
    assert loaded(site) == {0, 16}


class Questions:
    """Asks for predictions without a pause while the block runs; the failures are collected."""

    def __init__(self, site: Site) -> None:
        self._site = site
        self._stop = threading.Event()
        self._failures: list[str] = []
        self.answered: list[tuple[int, ...]] = []
        self._pool = ThreadPoolExecutor(2)

    def __enter__(self) -> list[str]:
        cases = [case.id for case in self._site.catalog.cases()]
        self._askers = [self._pool.submit(self._ask, case) for case in cases[:2]]
        return self._failures

    def _ask(self, case_id: str) -> None:
        with AttentionClient(self._site.attention) as client:
            while not self._stop.is_set():
                try:
                    with client.stream_case(case_id, Reading.PAPER.value) as stream:
                        result = stream.collect().result
                    self.answered.append(tuple(model.version for model in result.models))
                except Exception as error:  # whatever it is, it is a dropped request
                    self._failures.append(repr(error))

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._pool.shutdown()


def test_the_running_service_switches_without_dropping_a_request(
    site: Site, tmp_path: Path
) -> None:
    questions = Questions(site)
    with questions as failures:
        promote(export(tmp_path / "m", 5), site, PromotionRequest(limit=1))
        rollback(NAME, site)
    assert failures == []
    # Every answer is of one version, never of none: the ensemble has one model.
    assert {len(versions) for versions in questions.answered} == {1}
    assert {versions[0] for versions in questions.answered} <= {0, 5}
    assert len(questions.answered) > 2


def test_orders_that_make_no_sense_are_refused(site: Site, tmp_path: Path) -> None:
    with pytest.raises(Conflict, match="in service already"):
        promote(export(tmp_path / "m", 0), site, PromotionRequest())
    with pytest.raises(NotFound, match="no version 9"):
        rollback(NAME, site, to=9)
    with pytest.raises(NotFound, match="no case to evaluate on"):
        site.catalog.add_dataset(_dataset("empty"))
        promote(export(tmp_path / "n", 6), site, PromotionRequest(dataset="empty"))
    damaged = export(tmp_path / "d", 7)
    (damaged / GRAPH_FILE).write_bytes(b"other")
    with pytest.raises(AtlasError, match="not the exported one"):
        promote(damaged, site, PromotionRequest())
    assert in_service(site) == [(NAME, 0)]


def _dataset(name: str) -> object:
    from atlas_core.records import Dataset

    return Dataset(name=name)


@dataclass(frozen=True)
class _Told:
    returncode: int
    stdout: str
    stderr: str


def _atlasloop(*arguments: str) -> _Told:
    """The command in this process: it is torch that takes seconds to load, not the command."""
    result = CliRunner().invoke(app, list(arguments))
    return _Told(result.exit_code, result.stdout, f"{result.stderr} {result.exception}")


def test_the_commands_import_promote_compare_and_roll_back(
    site: Site, lifecycle_stack: Stack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A foreign graph becomes the next version of a model in service, and goes again."""
    for variable, value in lifecycle_stack.settings.environment().items():
        monkeypatch.setenv(variable, value)
    theirs = _foreign(tmp_path / "theirs.onnx", export(tmp_path / "m", 0))
    described = tmp_path / "described.yaml"
    described.write_text(
        "input: image\noutput: logits\naxes: zyx\nclasses: [liver, spleen, pancreas]\n"
        "spacing_mm: [3, 3, 3]\npatch: [24, 20, 16]\n"
    )
    organs = ("--organs", "liver,spleen,pancreas")  # in the order of the version in service
    arguments = ("--name", NAME, "--onnx", str(theirs), "--config", str(described), *organs)
    made = _atlasloop("models", "import", *arguments, "--json")
    assert made.returncode == 0, made.stderr
    version = json.loads(made.stdout)["version"]
    assert version >= 1
    promoted = _atlasloop("models", "promote", f"{NAME}@{version}", "--json")
    assert promoted.returncode == 0, promoted.stderr
    assert json.loads(promoted.stdout)["previous_version"] == 0
    assert in_service(site) == [(NAME, version)]

    listed = json.loads(_atlasloop("models", "list", "--json").stdout)
    states = {row["version"]: row["state"] for row in listed if row["name"] == NAME}
    assert states[version] == "in service"
    compared = _atlasloop(
        "models", "evaluate", f"{NAME}@0", f"{NAME}@{version}", "--json",
        "--csv", str(tmp_path / "figures.csv"),
    )  # fmt: skip
    assert compared.returncode == 0, compared.stderr
    told = json.loads(compared.stdout)
    assert told["models"][f"{NAME}@0"]["organs"]["liver"]["dice"]["mean"] == 1.0
    assert len((tmp_path / "figures.csv").read_text().splitlines()) == 1 + 2 * CASES * 3
    back = _atlasloop("models", "rollback", NAME, "--why", "enough")
    assert back.returncode == 0, back.stderr
    assert "rolled back" in back.stdout
    assert in_service(site) == [(NAME, 0)]
    shown = _atlasloop("models", "show", f"{NAME}@{version}")
    assert "mean Dice" in shown.stdout, shown.stderr
    out = tmp_path / "out"
    exported = _atlasloop("models", "export", f"{NAME}@{version}", "--output", str(out))
    assert exported.returncode == 0, exported.stderr
    assert read_spec(out).version == version


def _foreign(path: Path, exported: Path) -> Path:
    """The convolution of a tiny model alone: HU scaled to 0..1 in, logits out."""
    model = onnx.load_model(exported / GRAPH_FILE)
    convolution = next(node for node in model.graph.node if node.op_type == "Conv")
    convolution.input[0], convolution.output[0] = "image", "logits"
    kept = {"kernel", "bias"}
    graph = onnx.helper.make_graph(
        [convolution], "theirs",
        [onnx.helper.make_tensor_value_info("image", onnx.TensorProto.FLOAT, ["n", 1, 16, 20, 24])],
        [onnx.helper.make_tensor_value_info(
            "logits", onnx.TensorProto.FLOAT, ["n", 3, 16, 20, 24])],
        [tensor for tensor in model.graph.initializer if tensor.name in kept],
    )  # fmt: skip
    onnx.save_model(
        onnx.helper.make_model(
            graph, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=9
        ),
        path,
    )
    return path
