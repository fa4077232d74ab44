"""The compose files, read by the real compose: complete, hardened, started in order of health."""

from __future__ import annotations

import ipaddress
import subprocess

import pytest
import yaml
from compose_config import FILES, FOLDER, compose, read
from rendered_chart import REPOSITORY, program

ONE_SHOT = {"volumes", "migrate-catalog", "migrate-prefect", "model-repository"}
IMAGE_HEALTH = {"attention", "review"}
"""Their HEALTHCHECK is in the image."""


both = pytest.mark.parametrize("files", FILES, ids=["cpu", "gpu", "tls", "nninteractive"])


@both
def test_compose_takes_it(files: tuple[str, ...]) -> None:
    chosen = [option for file in files for option in ("--file", file)]
    done = compose(*chosen, "--profile", "tls", "config", "--quiet")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_a_missing_registry_is_named(tmp_path_factory: pytest.TempPathFactory) -> None:
    empty = tmp_path_factory.mktemp("env") / "empty.env"
    empty.write_text("")
    done = compose("--file", "compose.yaml", "config", "--quiet", env=str(empty))
    assert done.returncode != 0
    assert "ATLASLOOP_REGISTRY" in done.stderr


def test_the_files_follow_the_specification() -> None:
    done = subprocess.run(
        [
            program("check-jsonschema"), "--builtin-schema", "vendor.compose-spec",
            "compose.yaml", "compose.gpu.yaml", "compose.tls.yaml", "compose.nninteractive.yaml",
        ],
        cwd=FOLDER, capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout


@both
def test_services_are_hardened_and_bounded(files: tuple[str, ...]) -> None:
    for name, service in read(files)["services"].items():
        assert service["read_only"] is True, name
        assert service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        assert not service.get("privileged"), name
        assert int(service["deploy"]["resources"]["limits"]["memory"]) > 0, name
        if name not in ("volumes", "proxy"):
            assert service["user"] == "10001:10001", name
        assert service["restart"] == ("no" if name in ONE_SHOT else "unless-stopped"), name


@both
def test_what_keeps_running_has_a_health_check(files: tuple[str, ...]) -> None:
    services = read(files)["services"]
    for name, service in services.items():
        if name in ONE_SHOT:
            assert service["healthcheck"] == {"disable": True}, name
        elif name not in IMAGE_HEALTH:
            assert service["healthcheck"]["test"], name


@both
def test_nothing_starts_before_what_it_needs(files: tuple[str, ...]) -> None:
    services = read(files)["services"]
    for name, service in services.items():
        for needed, how in service.get("depends_on", {}).items():
            done = needed in ONE_SHOT
            wanted = "service_completed_successfully" if done else "service_healthy"
            assert how["condition"] == wanted, (name, needed)
    assert {"prefect", "attention", "migrate-catalog"} <= set(services["flows"]["depends_on"])
    assert "migrate-prefect" in services["prefect"]["depends_on"]
    assert "model-repository" in services["triton"]["depends_on"]


@both
def test_secrets_are_files(files: tuple[str, ...]) -> None:
    config = read(files)
    assert all(secret["file"] for secret in config["secrets"].values())
    for name, service in config["services"].items():
        given = {secret["source"] for secret in service.get("secrets", [])}
        for variable, value in (service.get("environment") or {}).items():
            if any(word in variable for word in ("PASSWORD", "SECRET", "AUTH_STRING")):
                assert variable.endswith("_FILE"), (name, variable)
                assert value.removeprefix("/run/secrets/") in given, (name, variable)


@both
def test_only_the_proxy_is_seen_from_outside(files: tuple[str, ...]) -> None:
    for name, service in read(files)["services"].items():
        for port in service.get("ports", []):
            assert name == "proxy" or port["host_ip"] == "127.0.0.1", name


@both
def test_networks_keep_apart_what_need_not_meet(files: tuple[str, ...]) -> None:
    config = read(files)
    shares = {
        name: set(service.get("networks") or {}) for name, service in config["services"].items()
    }
    assert shares["triton"] == {"models"}
    assert [
        name
        for name, service in config["services"].items()
        if "triton_control" in {secret["source"] for secret in service.get("secrets", [])}
    ] == ["flows", "triton"], "nobody else may load models"
    assert shares["attention"] == {"models", "flows"}
    assert shares["postgresql"] == {"catalog", "prefect-database"}
    inner = ("catalog", "prefect-database", "models", "flows")
    assert all(config["networks"][name]["internal"] for name in inner)


@both
def test_review_reaches_the_catalog_and_nothing_of_prefect(files: tuple[str, ...]) -> None:
    """It faces people and their files; who has Prefect's password may run code as the flows."""
    config = read(files)["services"]
    mine = set(config["review"]["networks"])
    meets = {name for name, one in config.items() if mine & set(one.get("networks") or {})}
    catalogs = {"postgresql", "migrate-catalog", "flows", "receiver", "pacs-flows"}
    assert meets == {"review", "proxy"} | catalogs
    given = {
        name: {secret["source"] for secret in one.get("secrets", [])}
        for name, one in config.items()
    }
    tls = {"authority_crt"} if "compose.tls.yaml" in files else set()
    prompts = {"nninteractive_key"} if "compose.nninteractive.yaml" in files else set()
    assert given["review"] == {"review_password", "review_secret", *tls, *prompts}
    runs = [name for name, held in given.items() if "prefect_auth" in held]
    assert runs == ["flows", "pacs-flows", "prefect"]
    assert given["attention"] == (tls and {*tls, "attention_crt", "attention_key"})
    assert config["review"]["environment"]["ATLAS_REVIEW_CATALOG_URL"].startswith(
        "postgresql://atlasloop_review@"
    )


def test_prefect_answers_to_its_own_names() -> None:
    prefect = read(FILES[0])["services"]["prefect"]
    assert "atlas_flows.prefect_server:create_app" in prefect["command"]
    variables = prefect["environment"]
    assert variables["ATLASLOOP_PREFECT_HOSTS"] == "prefect,prefect.example.org"
    assert variables["PREFECT_SERVER_CORS_ALLOWED_ORIGINS"] == (
        "http://127.0.0.1:4200,https://prefect.example.org"
    )


@both
def test_models_are_written_by_flows_and_read_by_triton(files: tuple[str, ...]) -> None:
    mounts = {
        name: {volume["source"]: volume for volume in service.get("volumes", [])}
        for name, service in read(files)["services"].items()
    }
    who = {name: volumes["models"] for name, volumes in mounts.items() if "models" in volumes}
    assert set(who) == {"volumes", "model-repository", "triton", "flows"}
    assert [name for name, mount in who.items() if mount.get("read_only")] == ["triton"]


@both
def test_flows_are_asked_themselves(files: tuple[str, ...]) -> None:
    """Prefect may be well while the process that serves our flows hangs."""
    flows = read(files)["services"]["flows"]
    port = flows["environment"]["PREFECT_RUNNER_SERVER_PORT"]
    assert flows["healthcheck"]["test"][-1] == f"http://127.0.0.1:{port}/health"


def test_the_database_is_ready_only_when_its_databases_are_made() -> None:
    """Until then its server listens on a socket alone, so it is asked by TCP."""
    assert "--host=127.0.0.1" in read(FILES[0])["services"]["postgresql"]["healthcheck"]["test"]


def test_the_proxy_owns_the_folder_that_it_writes_its_configuration_to() -> None:
    """Older engines give a tmpfs the mode of the image's folder, not the one asked for."""
    proxy = read(FILES[0])["services"]["proxy"]
    user, group = proxy["user"].split(":")
    (written,) = [place for place in proxy["tmpfs"] if place.startswith("/etc/nginx/conf.d:")]
    assert {f"uid={user}", f"gid={group}"} <= set(written.partition(":")[2].split(","))


def test_the_gpu_is_for_triton() -> None:
    services = read(FILES[1])["services"]
    (device,) = services["triton"]["deploy"]["resources"]["reservations"]["devices"]
    assert device["capabilities"] == ["gpu"]
    assert services["triton"]["image"].startswith("nvcr.io/nvidia/tritonserver:")
    assert "--target=gpu" in services["model-repository"]["command"]
    assert services["triton"]["command"] == read(FILES[0])["services"]["triton"]["command"]


def test_prefect_in_a_browser_speaks_to_nobody_else() -> None:
    command = read(FILES[0])["services"]["prefect"]["command"]
    (policy,) = [word for word in command if word.startswith("Content-Security-Policy:")]
    assert policy.startswith("Content-Security-Policy:connect-src 'self'")
    assert "connect-src 'self'" in (FOLDER / "proxy.conf.template").read_text()


def test_yaml_is_tidy() -> None:
    targets = [
        FOLDER, REPOSITORY / "deploy" / "grafana",
        REPOSITORY / "deploy" / "helm" / "atlasloop" / "values.yaml",
        REPOSITORY / "deploy" / "helm" / "atlasloop" / "ci",
    ]  # fmt: skip
    done = subprocess.run(
        [program("yamllint"), "--strict", "-c", str(REPOSITORY / "deploy" / "yamllint.yaml"),
         *map(str, targets)],
        capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
    rules = yaml.safe_load((REPOSITORY / "deploy" / "yamllint.yaml").read_text())
    assert rules["extends"] == "default"


def test_no_network_may_be_given_the_addresses_of_the_proxy_s() -> None:
    """An engine goes through its pools, so after some stacks another network would have them."""
    config = read(FILES[0])
    (front,) = config["networks"]["front"]["ipam"]["config"]
    subnet = ipaddress.ip_network(front["subnet"])
    pools = [f"172.{n}.0.0/16" for n in range(17, 32)] + ["192.168.0.0/16"]  # Docker's own
    assert not any(subnet.overlaps(ipaddress.ip_network(pool)) for pool in pools)
    services = config["services"]
    address = services["proxy"]["networks"]["front"]["ipv4_address"]
    assert ipaddress.ip_address(address) in subnet
    assert services["review"]["environment"]["ATLAS_REVIEW_TRUSTED_PROXIES"] == address
