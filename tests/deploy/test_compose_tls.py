"""TLS between the containers: real servers with the certificates and words of the compose file."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
import tritonclient.grpc as triton
from atlas_core.tls import TlsFiles, tritonclient_arguments
from atlas_embedded.triton_environment import TritonEnvironment
from compose_config import FILES, FOLDER, read, triton_arguments
from postgres import PASSWORD, PostgresServer, running_postgres
from triton_server import TritonServer, install
from tritonclient.utils import InferenceServerException

FILES_WITH_TLS = FILES[2]


@pytest.fixture(scope="module")
def certificates() -> Iterator[Path]:
    """As the secrets of the compose file lie in a container, and in a folder all may enter."""
    with tempfile.TemporaryDirectory(prefix="atlasloop-tls-") as name:
        made = Path(name) / "made"
        subprocess.run(["bash", FOLDER / "certificates.sh", made], check=True)
        mounted = Path(name) / "secrets"
        mounted.mkdir()
        for path in made.iterdir():
            assert path.stat().st_mode & 0o777 == 0o400
            shutil.copy(path, mounted / path.name.replace(".", "_"))
        shutil.copy(FOLDER / "pg_hba.tls.conf", mounted)
        Path(name).chmod(0o755)
        yield mounted


@pytest.fixture(scope="module")
def database(certificates: Path) -> Iterator[PostgresServer]:
    _, *words = read(FILES_WITH_TLS)["services"]["postgresql"]["command"]
    hba = "/etc/postgresql/pg_hba.conf"
    options = [
        word.replace("/run/secrets", str(certificates)).replace(
            hba, str(certificates / "pg_hba.tls.conf")
        )
        for word in words
    ]
    owned = [certificates / name for name in ("postgresql_crt", "postgresql_key")]
    (certificates / "pg_hba.tls.conf").chmod(0o644)
    with running_postgres(options, owned, tls=True) as server:
        yield server


def connect(server: PostgresServer, host: str, **how: Any) -> bool:
    with psycopg.connect(
        host=host, hostaddr="127.0.0.1", port=server.port, user="atlas", password=PASSWORD,
        dbname="postgres", **how,
    ) as connection:  # fmt: skip
        return bool(connection.pgconn.ssl_in_use)


def test_the_database_is_asked_by_tls_or_not_at_all(
    database: PostgresServer, certificates: Path
) -> None:
    authority = str(certificates / "authority_crt")
    for name in ("localhost", "postgresql"):
        assert connect(database, name, sslmode="verify-full", sslrootcert=authority)
    with pytest.raises(psycopg.OperationalError, match="no encryption"):
        connect(database, "localhost", sslmode="disable")
    with pytest.raises(psycopg.OperationalError, match="certificate"):
        connect(database, "evil.example", sslmode="verify-full", sslrootcert=authority)


def test_every_client_of_the_database_verifies_it() -> None:
    services = read(FILES_WITH_TLS)["services"]
    for name, service in services.items():
        variables = service.get("environment") or {}
        addresses = [v for k, v in variables.items() if k.endswith("CATALOG_URL")]
        for address in addresses:
            assert address.endswith("?sslmode=verify-full&sslrootcert=/run/secrets/authority_crt")
        if "PREFECT_SERVER_DATABASE_HOST" in variables:
            prefix = "PREFECT_SERVER_DATABASE_SQLALCHEMY_CONNECT_ARGS_TLS_"
            assert variables[f"{prefix}ENABLED"] == variables[f"{prefix}CHECK_HOSTNAME"] == "true"
            addresses.append("prefect's own")
        if addresses:
            assert "authority_crt" in {secret["source"] for secret in service["secrets"]}, name


def test_triton_takes_certificates_of_this_stack_and_control_the_key_besides(
    certificates: Path,
    triton_environment: TritonEnvironment,
    tiny_models: dict[str, Path],
    tmp_path: Path,
) -> None:
    places = ("--model-repository=", "--grpc-port=", "--metrics-port=")
    given = triton_arguments(certificates, "0123456789abcdef", FILES_WITH_TLS)
    arguments = [word for word in given if not word.startswith(places)]
    assert "--grpc-use-ssl-mutual=true" in arguments
    install(tmp_path / "repository", [tiny_models["conv_a@0"]])
    attention = tritonclient_arguments(
        TlsFiles(
            authority=certificates / "authority_crt",
            certificate=certificates / "attention_crt",
            key=certificates / "attention_key",
        )
    )
    server = TritonServer(
        triton_environment, tmp_path / "repository", tmp_path / "triton.log", arguments, attention
    )
    try:
        server.start()
        for stranger in ({}, {"ssl": True, "root_certificates": attention["root_certificates"]}):
            with (
                triton.InferenceServerClient(server.address, **stranger) as client,
                pytest.raises(InferenceServerException, match="UNAVAILABLE"),
            ):
                client.is_server_live(client_timeout=10.0)
        with triton.InferenceServerClient(server.address, **attention) as client:
            assert client.is_model_ready("conv_a")
            with pytest.raises(InferenceServerException, match="restricted"):
                client.unload_model("conv_a")
    finally:
        server.stop()
