"""The program that fills a repository before Triton starts: what it writes, keeps, refuses."""

from __future__ import annotations

from pathlib import Path

import pytest
from atlas_embedded import model_repository
from atlas_models.serving import CpuServing, GpuServing, TritonRepository
from atlas_models.serving.exported_model import CONFIG_FILE
from atlas_models.serving.triton_repository import SERVING_FILE
from triton_server import export_tiny_model


@pytest.fixture
def shipped(tmp_path: Path) -> Path:
    """Exported models as they lie in the image of flows."""
    for seed, name in enumerate(("conv_a", "conv_b")):
        export_tiny_model(tmp_path / "shipped" / name, name, seed=seed)
    return tmp_path / "shipped"


def prepare(root: Path, target: str, shipped: Path | None, cache: Path) -> int:
    models = [] if shipped is None else [f"--models={shipped}"]
    return model_repository.main([str(root), f"--target={target}", f"--cache={cache}", *models])


def snapshot(root: Path) -> dict[str, bytes]:
    files = [path for path in root.rglob("*") if path.is_file()]
    return {str(path.relative_to(root)): path.read_bytes() for path in files}


def test_a_new_volume_is_filled_and_a_second_start_changes_nothing(
    tmp_path: Path, shipped: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "volume" / "repository"
    assert prepare(root, "cpu", shipped, tmp_path / "cache") == 0
    assert capsys.readouterr().out == "models: conv_a, conv_b\n"
    repository = TritonRepository.prepared(root)
    assert repository.serving == CpuServing(cache_dir=tmp_path / "cache")
    assert [repository.in_service(name) for name in repository.models()] == [0, 0]
    before = snapshot(root)
    assert prepare(root, "cpu", shipped, tmp_path / "cache") == 0
    assert snapshot(root) == before


def test_the_target_may_change_and_versions_of_the_site_stay(tmp_path: Path, shipped: Path) -> None:
    root = tmp_path / "repository"
    assert prepare(root, "cpu", shipped, tmp_path / "cache") == 0
    newer = tmp_path / "newer"
    export_tiny_model(newer, "conv_a", version=1, seed=7)
    TritonRepository.prepared(root).install(newer)
    graphs = {name: data for name, data in snapshot(root).items() if name.endswith(".onnx")}
    assert prepare(root, "gpu", shipped, tmp_path / "engines") == 0
    repository = TritonRepository.prepared(root)
    assert repository.serving == GpuServing(engine_cache_dir=tmp_path / "engines")
    assert repository.in_service("conv_a") == 1
    assert "KIND_GPU" in (root / "conv_a" / CONFIG_FILE).read_text()
    after = {name: data for name, data in snapshot(root).items() if name.endswith(".onnx")}
    assert after == graphs


def test_without_shipped_models_an_empty_repository_is_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert prepare(tmp_path / "repository", "cpu", None, tmp_path / "cache") == 0
    assert "none yet" in capsys.readouterr().out
    assert set(snapshot(tmp_path / "repository")) >= {SERVING_FILE}


def test_a_damaged_model_is_named_and_not_installed(
    tmp_path: Path, shipped: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (shipped / "conv_b" / "model.onnx").write_bytes(b"half of a graph")
    root = tmp_path / "repository"
    assert prepare(root, "cpu", shipped, tmp_path / "cache") == 2
    assert "conv_b" in capsys.readouterr().err
    assert not (root / "conv_b" / CONFIG_FILE).exists()
