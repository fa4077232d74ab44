"""The committed gRPC stubs are what `make proto` writes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[3]
PACKAGE = Path("atlasloop/attention/v1")
STUBS = (
    "attention_pb2.py",
    "attention_pb2.pyi",
    "attention_pb2_grpc.py",
    "attention_pb2_grpc.pyi",
)


@pytest.fixture(scope="module")
def regenerated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("proto")
    programs = Path(sys.executable).parent
    plugins = [
        f"--plugin={name}={programs / name}" for name in ("protoc-gen-mypy", "protoc-gen-mypy_grpc")
    ]
    outputs = [f"--{kind}_out={folder}" for kind in ("python", "grpc_python", "mypy", "mypy_grpc")]
    command = [sys.executable, "-m", "grpc_tools.protoc", f"--proto_path={REPOSITORY / 'services'}"]
    subprocess.run(
        [*command, *plugins, *outputs, str(PACKAGE / "attention.proto")],
        check=True,
    )
    return folder / PACKAGE


@pytest.mark.parametrize("name", STUBS)
def test_committed_stub_is_up_to_date(regenerated: Path, name: str) -> None:
    committed = REPOSITORY / "services" / PACKAGE / name
    assert committed.read_text() == (regenerated / name).read_text(), "run `make proto`"
