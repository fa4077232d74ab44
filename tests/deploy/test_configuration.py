"""What chart and compose file configure, read by the classes that will read it."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import promql_parser
import pytest
import yaml
from atlas_attention.observability import AttentionMetrics
from atlas_attention.settings import AttentionSettings
from atlas_core.catalog import Catalog
from atlas_core.catalog.database import make_engine
from atlas_core.organs import read_scheme
from atlas_embedded.settings import EmbeddedSettings
from atlas_flows.loop_metrics import LoopMetrics
from atlas_flows.settings import FlowSettings, Places
from atlas_review.metrics import ReviewMetrics
from atlas_review.settings import ReviewSettings
from prometheus_client import CollectorRegistry
from rendered_chart import (
    CHART,
    REPOSITORY,
    VALUES,
    Manifest,
    container,
    environment,
    job_templates,
    of_kind,
    program,
    render,
)

SECRETS = {
    "catalog-password": "p" * 40,
    "prefect-password": "q" * 40,
    "review-password": "r" * 40,
    "catalog_password": "p" * 40,
    "prefect_password": "q" * 40,
    "review_password": "r" * 40,
    "auth-string": "atlas:secret",
    "prefect_auth": "atlas:secret",
    "secret": "s" * 64,
    "review_secret": "s" * 64,
    "oidc-client-secret": "o" * 40,
    "nninteractive_key": "prompts",
    "nninteractive-key": "n" * 40,
    "control-key": "k" * 64,
    "triton_control": "k" * 64,
}

values_files = pytest.mark.parametrize("values", VALUES)


@pytest.fixture
def clean(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    for name in list(os.environ):
        if name.startswith(("ATLAS", "PREFECT", "PG")):
            monkeypatch.delenv(name)
    return monkeypatch


def compose_service(name: str, *files: str) -> Manifest:
    chosen = [option for file in ("compose.yaml", *files) for option in ("--file", file)]
    done = subprocess.run(
        [
            program("docker-compose"), "--env-file", "example.env", *chosen,
            "--profile", "tls", "config", "--format", "json",
        ],
        cwd=REPOSITORY / "deploy" / "compose", capture_output=True, text=True, check=True,
    )  # fmt: skip
    service: Manifest = json.loads(done.stdout)["services"][name]
    return service


def compose_environment(service: Manifest) -> dict[str, str]:
    variables = [{"name": k, "value": v} for k, v in service["environment"].items()]
    return environment({"env": variables}, SECRETS)


def enter(monkeypatch: pytest.MonkeyPatch, variables: dict[str, str]) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)


def no_other(variables: dict[str, str], prefix: str, fields: set[str]) -> None:
    """A misspelt variable would be ignored without a word."""
    ours = {name for name in variables if name.startswith(prefix)}
    assert ours <= {f"{prefix}{field.upper()}" for field in fields}


@values_files
def test_attention_reads_its_configuration(values: str, clean: pytest.MonkeyPatch) -> None:
    variables = environment(container(render(values), "attention"), SECRETS)
    no_other(variables, "ATLAS_ATTENTION_", set(AttentionSettings.model_fields))
    enter(clean, variables)
    settings = AttentionSettings()
    assert (settings.listen, settings.allow_remote) == ("0.0.0.0:18010", True)
    place = "127.0.0.1" if values == "sidecar" else "site-atlasloop-triton-replicas"
    assert settings.triton == f"{place}:8001"
    assert settings.spool_folder == Path("/var/spool/atlasloop")
    if values == "production":
        assert (settings.windows_in_flight, settings.max_calls) == (16, 8)


def test_every_setting_of_attention_may_be_a_value(clean: pytest.MonkeyPatch) -> None:
    """Also those that are structures: they go through YAML, JSON and an environment variable."""
    values = {
        "device": "cuda", "shared_memory": "none", "windows_in_flight": 9, "overlap": 0.25,
        "inference_timeout_s": 12.5, "max_voxels": 500_000_000,
    }  # fmt: skip
    options = ["--set-json", f"attention.settings={json.dumps(values)}"]
    variables = environment(container(render("trial", "1.32", *options), "attention"), SECRETS)
    enter(clean, variables)
    settings = AttentionSettings()
    assert (settings.device, settings.shared_memory, settings.overlap) == ("cuda", "none", 0.25)
    assert settings.max_voxels == 500_000_000


@pytest.mark.parametrize("form", ["name", "json"])
def test_the_organs_of_the_atlas_are_one_value_for_all(
    form: str, clean: pytest.MonkeyPatch
) -> None:
    scheme = read_scheme("abdomen_atlas_1_1")
    given = scheme.name if form == "name" else scheme.model_dump_json(exclude_defaults=True)
    chart = render("trial", "1.32", "--set-json", f"organs={json.dumps(given)}")
    for name in ("attention", "review"):
        enter(clean, environment(container(chart, name), SECRETS))
    for base in job_templates(chart).values():
        enter(clean, base["variables"]["properties"]["env"]["default"])
    assert AttentionSettings().organs == scheme
    assert ReviewSettings().organs == scheme
    assert FlowSettings().organs == scheme


def _places_agree(places: Places, database: str, attention: str, prefect: str) -> None:
    address = make_engine(places.catalog_url).url
    assert address.drivername == "postgresql+psycopg"
    assert (address.host, address.database, address.username) == (
        database, "atlasloop", "atlasloop",
    )  # fmt: skip
    assert address.password is None
    assert places.store == Path("/var/lib/atlasloop/store")
    assert places.attention_address == attention
    assert places.prefect_api_url == prefect


def _models_agree(places: Places, triton: str, key: str) -> None:
    """A version is promoted from here: in the repository that Triton reads, by a call to Triton."""
    assert places.triton_address == triton
    root = Path("/var/lib/atlasloop/models")
    assert places.model_repository == root / "repository"
    assert places.model_store == root / "store"
    assert places.training_runs == root / "runs"
    assert places.triton_load_timeout_s == 1800
    assert places.triton_control_key is not None
    assert places.triton_control_key.get_secret_value() == key


@values_files
def test_flows_read_their_configuration(values: str, clean: pytest.MonkeyPatch) -> None:
    """As the pods of flow runs get it, from the job template of their work pool."""
    database = {
        "production": "postgresql.example.org",
        "airgapped": "pg.hospital.lan",
    }.get(values, "site-atlasloop-postgresql")
    for base in job_templates(render(values)).values():
        own = base["variables"]["properties"]["env"]["default"]
        variables = environment({"env": [{"name": k, "value": v} for k, v in own.items()]}, SECRETS)
        # Fields of two classes: the embedded stack's settings and the flows' own.
        no_other(
            variables,
            "ATLASLOOP_",
            {*FlowSettings.model_fields, *EmbeddedSettings.model_fields},
        )
        enter(clean, variables)
        assert variables["PGPASSWORD"] == SECRETS["catalog-password"]
        places = Places.read()
        _places_agree(
            places,
            database,
            "dns:///site-atlasloop-attention:18010",
            "http://site-atlasloop-prefect:4200/api",
        )
        _models_agree(places, "site-atlasloop-triton-replicas:8001", SECRETS["control-key"])
        assert places.review_role == "atlasloop_review"
        query = make_engine(places.catalog_url).url.query
        expected = {"production": "verify-full", "airgapped": "verify-ca"}.get(values, "disable")
        assert query["sslmode"] == expected
        if expected != "disable":
            assert query["sslrootcert"] == "/etc/atlasloop/ca/ca.crt"
        assert places.score_schedule == ("0 20 * * *" if values == "production" else None)


PREFECT_QUESTION = """
import json
from prefect.settings import get_current_settings
server = get_current_settings().server
from prefect.settings.models.server.database import ServerDatabaseSettings
database = server.database
print(json.dumps({
    "url": database.connection_url.get_secret_value() if database.connection_url else None,
    "tls": database.sqlalchemy.connect_args.tls.model_dump(mode="json"),
    "auth": server.api.auth_string.get_secret_value() if server.api.auth_string else None,
    "ui": server.ui.api_url,
    "ui files": server.ui.static_directory,
    "analytics": server.analytics_enabled,
}))
"""


def _prefect_settings(variables: dict[str, str], home: Path) -> Manifest:
    outer = {k: v for k, v in os.environ.items() if not k.startswith(("PREFECT", "PG", "ATLAS"))}
    done = subprocess.run(
        [sys.executable, "-c", PREFECT_QUESTION],
        env={**outer, **variables, "PREFECT_HOME": str(home)},
        capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    answer: Manifest = json.loads(done.stdout)
    return answer


def test_the_prefect_server_reads_its_configuration(tmp_path: Path) -> None:
    variables = environment(container(render("production"), "prefect"), SECRETS)
    read = _prefect_settings(variables, tmp_path)
    password = SECRETS["prefect-password"]
    assert read["url"] == (
        f"postgresql+asyncpg://prefect:{password}@postgresql.example.org:5432/prefect"
    )
    assert read["tls"]["enabled"] is True
    assert read["tls"]["check_hostname"] is True
    assert read["tls"]["ca_file"] == "/etc/atlasloop/ca/ca.crt"
    assert read["auth"] == "atlas:secret"
    assert read["ui"] == "https://prefect.example.org/api"
    assert read["ui files"].startswith("/tmp/"), "its own place is in the read-only root"
    assert read["analytics"] is False


def test_compose_configures_the_same_classes(clean: pytest.MonkeyPatch, tmp_path: Path) -> None:
    variables = compose_environment(compose_service("attention"))
    no_other(variables, "ATLAS_ATTENTION_", set(AttentionSettings.model_fields))
    enter(clean, variables)
    assert AttentionSettings().triton == "triton:8001"
    variables = compose_environment(compose_service("flows"))
    enter(clean, variables)
    no_other(variables, "ATLASLOOP_", {*FlowSettings.model_fields, *EmbeddedSettings.model_fields})
    _places_agree(Places.read(), "postgresql", "attention:18010", "http://prefect:4200/api")
    _models_agree(Places.read(), "triton:8001", SECRETS["triton_control"])
    read = _prefect_settings(compose_environment(compose_service("prefect")), tmp_path)
    assert read["url"] == f"postgresql+asyncpg://prefect:{'q' * 40}@postgresql:5432/prefect"
    assert (read["tls"]["enabled"], read["auth"]) == (False, "atlas:secret")
    assert read["ui files"].startswith("/tmp/")


@pytest.mark.parametrize("values", [v for v in VALUES if v != "airgapped"])
def test_review_reads_its_configuration(values: str, clean: pytest.MonkeyPatch) -> None:
    variables = environment(container(render(values), "review"), SECRETS)
    no_other(variables, "ATLAS_REVIEW_", set(ReviewSettings.model_fields))
    enter(clean, variables)
    settings = ReviewSettings()
    assert settings.secret is not None
    assert settings.secret.get_secret_value() == SECRETS["secret"]
    assert make_engine(settings.catalog_url.get_secret_value()).url.password is None
    assert variables["PGPASSWORD"] == SECRETS["review-password"]
    if values == "production":
        assert settings.public_url == "https://review.example.org"
        assert settings.oidc_client_secret.get_secret_value() == SECRETS["oidc-client-secret"]
        assert settings.nninteractive_key is not None
        assert settings.nninteractive_key.get_secret_value() == SECRETS["nninteractive-key"]
        assert set(settings.oidc_roles) == {"radiology", "radiology-seniors", "atlas-managers"}


@pytest.mark.parametrize("files", [(), ("compose.nninteractive.yaml",)], ids=["alone", "prompts"])
def test_compose_configures_review(files: tuple[str, ...], clean: pytest.MonkeyPatch) -> None:
    variables = compose_environment(compose_service("review", *files))
    no_other(variables, "ATLAS_REVIEW_", set(ReviewSettings.model_fields))
    enter(clean, variables)
    settings = ReviewSettings()
    assert settings.public_url == "https://review.example.org"
    assert variables["PGPASSWORD"] == SECRETS["review_password"]
    assert settings.nninteractive_url == ("http://gpu.example.org:1527" if files else None)
    assert (settings.nninteractive_key is not None) == bool(files)


def _generator() -> Any:
    import importlib.util

    path = REPOSITORY / "deploy" / "helm" / "values_schema.py"
    spec = importlib.util.spec_from_file_location("values_schema", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_schema_is_the_one_of_the_classes() -> None:
    written = json.loads((CHART / "values.schema.json").read_text())
    assert written == _generator().values_schema(), "run `make chart-schema`"


def test_values_of_review_are_the_fields_of_its_class() -> None:
    generator = _generator()
    fields = set(ReviewSettings.model_fields)
    assert set(generator.REVIEW_SETTINGS) | generator.DECIDED_BY_CHART["review"] == fields


def _series(registry: CollectorRegistry) -> set[str]:
    """Names under which Prometheus keeps what `registry` serves."""
    served = set()
    for family in registry.collect():
        name = f"{family.name}_total" if family.type == "counter" else family.name
        served |= {name, f"{name}_bucket"} if family.type == "histogram" else {name}
    return served


def _prefect_without_runs(path: str, _body: object) -> object:
    return 0 if path.endswith("/count") else []


def test_dashboard_and_alerts_ask_for_what_is_measured(tmp_path: Path) -> None:
    """Every query is PromQL, and every metric of ours exists."""
    loop = CollectorRegistry()
    with Catalog.open(f"sqlite:///{tmp_path}/catalog.sqlite") as catalog:
        loop.register(LoopMetrics(catalog, lambda: nullcontext(_prefect_without_runs), tmp_path))
        measured = _series(loop)
    registries = (AttentionMetrics().registry, ReviewMetrics(lambda: {"open": 0}).registry)
    served = measured.union(*map(_series, registries))
    folder = REPOSITORY / "deploy" / "grafana"
    dashboard = json.loads((folder / "dashboard.json").read_text())
    rules = yaml.safe_load((folder / "alerts.yaml").read_text())
    queries = [t["expr"] for panel in dashboard["panels"] for t in panel["targets"]]
    queries += [rule["expr"] for group in rules["groups"] for rule in group["rules"]]
    assert len(queries) > 25
    for query in queries:
        promql_parser.parse(query)
        ours = set(re.findall(r"atlasloop_\w+|process_\w+", query))
        assert ours <= served, query
    (rule,) = of_kind(render("production"), "PrometheusRule")
    assert rule["spec"]["groups"] == rules["groups"]
    (shown,) = [
        one
        for one in of_kind(render("production"), "ConfigMap")
        if one["metadata"]["labels"].get("grafana_dashboard")
    ]
    assert [json.loads(text) for text in shown["data"].values()] == [dashboard]
    ids = [panel["id"] for panel in dashboard["panels"]]
    assert len(ids) == len(set(ids))
