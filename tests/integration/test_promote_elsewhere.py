"""Models promoted on a Triton that somebody else runs, from a process like a pod.

Its home is empty and thrown away; Triton's repository, the store of models and the case store are
shared folders. Triton controls its models only for who has the secret, as the chart starts it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest
from atlas_attention.server import AttentionServer
from atlas_attention.settings import AttentionSettings
from atlas_core.catalog import Catalog
from atlas_core.errors import ConfigurationError
from atlas_core.store import CaseStore
from atlas_embedded import model_repository
from atlas_embedded.triton_environment import TritonEnvironment
from atlas_embedded.triton_models import TritonModels
from atlas_flows.cli import app
from atlas_models.serving import TritonRepository
from atlasloop.client import AttentionClient
from known_models import NAME, export, import_true_cases
from ports import free_port
from triton_server import TritonServer
from typer.testing import CliRunner

KEY = "open sesame"


@dataclass(frozen=True)
class Elsewhere:
    """What a cluster has, and nothing of an embedded stack."""

    shared: Path
    triton: TritonServer
    attention: str

    @property
    def repository(self) -> Path:
        return self.shared / "models"

    @property
    def catalog_url(self) -> str:
        return f"sqlite:///{self.shared}/catalog.sqlite"

    def variables(self) -> dict[str, str]:
        return {
            "TRITON_ADDRESS": self.triton.address,
            "TRITON_CONTROL_KEY": KEY,
            "MODEL_REPOSITORY": str(self.repository),
            "MODEL_STORE": str(self.shared / "versions"),
            "STORE": str(self.shared / "store"),
            "CATALOG_URL": self.catalog_url,
            "ATTENTION_ADDRESS": self.attention,
        }

    def in_service(self) -> list[int]:
        with AttentionClient(self.attention) as client:
            return [model.version for model in client.info().models]


@pytest.fixture(scope="module")
def elsewhere(
    tmp_path_factory: pytest.TempPathFactory, triton_environment: TritonEnvironment
) -> Iterator[Elsewhere]:
    """Triton as the chart starts it, an attention service, and three cases with their truth."""
    shared = tmp_path_factory.mktemp("shared")
    export(shared / "shipped" / NAME, 0)
    prepared = ("--target=cpu", f"--models={shared / 'shipped'}", f"--cache={shared / 'cache'}")
    assert model_repository.main([str(shared / "models"), *prepared]) == 0
    triton = TritonServer(
        triton_environment, shared / "models", shared / "triton.log",
        [
            "--load-model=*", "--exit-on-error=false",
            f"--grpc-restricted-protocol=model-repository:atlasloop-control={KEY}",
        ],
    )  # fmt: skip
    settings = AttentionSettings(
        listen=f"127.0.0.1:{free_port()}", metrics_listen="", triton=triton.address,
        store=shared / "store", stop_grace_s=0.0,
    )  # fmt: skip
    with ExitStack() as parts:
        parts.callback(triton.stop)
        triton.start()
        parts.enter_context(AttentionServer(settings))
        place = Elsewhere(shared, triton, settings.listen)
        with Catalog.open(place.catalog_url) as catalog:
            store = CaseStore(shared / "store")
            import_true_cases(shared / "cts", 3, catalog, store, settings.listen)
        yield place


@pytest.fixture
def pod(elsewhere: Elsewhere, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """This process has the variables of a pod; its home."""
    for name, value in elsewhere.variables().items():
        monkeypatch.setenv(f"ATLASLOOP_{name}", value)
    monkeypatch.setenv("ATLASLOOP_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("ATLASLOOP_MODELS_DIR", str(tmp_path / "nothing-shipped"))
    return tmp_path / "home"


def atlasloop(*arguments: str) -> str:
    """What the command prints; its error is raised."""
    result = CliRunner().invoke(app, ["models", *arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.stderr
    return result.stdout


def stored(elsewhere: Elsewhere, version: int, level: float = 0.0) -> None:
    """A version as an earlier run, in another pod, left it in the store of models."""
    export(elsewhere.shared / "versions" / NAME / str(version), version, level=level)


def test_promote_list_and_roll_back(elsewhere: Elsewhere, pod: Path) -> None:
    stored(elsewhere, 1)
    promoted = json.loads(atlasloop("promote", f"{NAME}@1", "--json"))
    assert promoted["evidence"]["mean_dice"] == promoted["evidence"]["mean_dice_before"]
    assert promoted["evidence"]["cases"] == 3
    assert elsewhere.in_service() == [1]
    repository = TritonRepository.prepared(elsewhere.repository)
    assert repository.in_service(NAME) == 1
    # As it was prepared, though nobody told the pod.
    config = (elsewhere.repository / NAME / "config.pbtxt").read_text()
    assert str(elsewhere.shared / "cache") in config

    rolled_back = json.loads(atlasloop("rollback", NAME, "--why", "a test", "--json"))
    assert (rolled_back["kind"], rolled_back["previous_version"]) == ("rolled_back", 1)
    assert elsewhere.in_service() == [0]
    assert not [path for path in pod.rglob("*") if path.is_file()]


def test_list_and_show_tell_what_that_triton_serves(elsewhere: Elsewhere, pod: Path) -> None:
    stored(elsewhere, 2)
    atlasloop("promote", f"{NAME}@2")
    states = {row["version"]: row["state"] for row in json.loads(atlasloop("list", "--json"))}
    assert (states[0], states[2]) == ("loaded", "in service")
    assert "in service" in atlasloop("show", f"{NAME}@2")
    atlasloop("rollback", NAME)
    states = {row["version"]: row["state"] for row in json.loads(atlasloop("list", "--json"))}
    assert (states[0], states[2]) == ("in service", "loaded")


def test_without_the_secret_nothing_changes(
    elsewhere: Elsewhere, pod: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stored(elsewhere, 3)
    before = (elsewhere.repository / NAME / "config.pbtxt").read_bytes()
    monkeypatch.setenv("ATLASLOOP_TRITON_CONTROL_KEY", "wrong")
    with pytest.raises(ConfigurationError, match="ATLASLOOP_TRITON_CONTROL_KEY"):
        atlasloop("promote", f"{NAME}@3")
    assert (elsewhere.repository / NAME / "config.pbtxt").read_bytes() == before
    assert not (elsewhere.repository / NAME / "4").exists()
    assert elsewhere.in_service() == [0]


def test_a_repository_that_triton_does_not_read_is_noticed(
    elsewhere: Elsewhere, tmp_path: Path
) -> None:
    """A switch that is written to the wrong volume must not pass for one."""
    model_repository.main([str(tmp_path / "other"), "--target=cpu"])
    other = TritonRepository.prepared(tmp_path / "other")
    other.install(export(tmp_path / "m", 4))
    triton = TritonModels(elsewhere.triton.address, other, 60.0, control_key=KEY, seen_timeout_s=0)
    with pytest.raises(ConfigurationError, match="does not see what was written for model conv_a"):
        triton.load(NAME)
    assert elsewhere.in_service() == [0]


def test_a_repository_that_was_never_prepared_is_named(
    pod: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ATLASLOOP_MODEL_REPOSITORY", str(tmp_path / "not-mounted"))
    with pytest.raises(ConfigurationError, match="not-mounted is no model repository"):
        atlasloop("list")
