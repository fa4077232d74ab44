"""Weights of MONAI networks and foreign ONNX graphs: the same answers behind our interface."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import safetensors.torch
import torch
import yaml
from atlas_core.errors import AtlasError, ConfigurationError, CorruptFile, InvalidInput
from atlas_core.organs import ABDOMEN_ATLAS
from atlas_models.exporting import export_model, load_network, read_checkpoint
from atlas_models.exporting.parity import run_graph
from atlas_models.importing.model_description import read_description
from atlas_models.importing.monai import (
    WeightsDescription,
    build,
    configuration,
    import_monai,
)
from atlas_models.importing.onnx import import_onnx
from atlas_models.serving import GRAPH_FILE, read_spec
from bombs import compress, overlap
from monai.networks.nets import SegResNet, UNet
from torch import nn

pytestmark = pytest.mark.slow

PUBLISHED = Path(__file__).parents[4] / "models" / "atlas_models" / "published"

PATCH = (24, 16, 32)  # x, y, z
CLASSES = [None, "spleen", "liver", "Right Kidney", "liver"]

DESCRIBED: dict[str, Any] = {
    "architecture": "unet",
    "arguments": {"channels": [8, 16], "strides": [2]},
    "classes": CLASSES,
    "activation": "softmax",
    "spacing_mm": [1.5, 1.5, 2.0],
    "patch": list(PATCH),
    "hu_window": [-100.0, 300.0],
}


def describe(folder: Path, **changed: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "described.yaml"
    content = {**DESCRIBED, **changed}
    path.write_text(yaml.safe_dump({k: v for k, v in content.items() if v is not ...}))
    return path


def unet() -> nn.Module:
    torch.manual_seed(5)
    return UNet(3, 1, len(CLASSES), channels=(8, 16), strides=(2,)).eval()


@pytest.fixture(scope="module")
def window() -> np.ndarray:
    """HU ``[z, y, x]``."""
    return np.random.default_rng(3).normal(50.0, 150.0, PATCH[::-1]).astype(np.float32)


def expected_of(network: nn.Module, window: np.ndarray) -> np.ndarray:
    """Probabilities of (kidney_right, liver, spleen), ``[organ, z, y, x]``, MONAI's own way: the
    volume as x, y, z, scaled to 0..1 by ScaleIntensityRange, softmax over the classes."""
    scaled = np.clip((window.transpose(2, 1, 0) + 100.0) / 400.0, 0.0, 1.0).astype(np.float32)
    with torch.no_grad():
        soft = network(torch.from_numpy(scaled)[None, None]).softmax(1)[0].numpy()
    return np.stack([soft[3], soft[2] + soft[4], soft[1]]).transpose(0, 3, 2, 1)


def check(folder: Path, expected: np.ndarray, window: np.ndarray) -> None:
    soft, rounded = run_graph(folder / GRAPH_FILE, np.stack([window, window])[:, None])
    assert np.abs(soft - expected).max() <= 1e-4
    assert np.abs(rounded.astype(int) - np.rint(255 * expected).astype(int)).max() <= 1
    assert read_spec(folder).organs == ("kidney_right", "liver", "spleen")


@pytest.mark.parametrize("layout", ["plain", "published", "safetensors"])
def test_monai_weights_answer_as_in_monai(tmp_path: Path, window: np.ndarray, layout: str) -> None:
    network = unet()
    state = network.state_dict()
    path = tmp_path / ("weights.safetensors" if layout == "safetensors" else "weights.pth")
    if layout == "safetensors":
        safetensors.torch.save_file(state, path)
    elif layout == "plain":
        torch.save(state, path)
    else:
        saved = {f"module.backbone.{name}": tensor for name, tensor in state.items()}
        torch.save({"net": saved, "optimizer": {"lr": 1e-4}, "epoch": 800}, path)
    spec = import_monai(
        path, describe(tmp_path), tmp_path / "m", name="theirs", version=2, scheme=ABDOMEN_ATLAS
    ).spec
    assert (spec.name, spec.version, spec.patch) == ("theirs", 2, PATCH)
    check(tmp_path / "m", expected_of(network, window), window)


@pytest.mark.parametrize("activation", ["softmax", "sigmoid"])
def test_an_imported_network_is_trained_further_and_exported(
    tmp_path: Path, window: np.ndarray, activation: str
) -> None:
    """What is kept answers as what is served does, learns in all its weights, and is exported by
    the exporter of our own networks."""
    torch.save(unet().state_dict(), tmp_path / "w.pth")
    turned = {"orientation": "LPS", "activation": activation}
    imported = import_monai(
        tmp_path / "w.pth", describe(tmp_path, **turned), tmp_path / "m",
        name="theirs", scheme=ABDOMEN_ATLAS, serving={"overlap": 0.25},
    )  # fmt: skip
    assert imported.trainable == "monai"
    served, _ = run_graph(tmp_path / "m" / GRAPH_FILE, window[None, None])
    network, config = load_network(tmp_path / "m")
    assert config.model_dump_json() == imported.provenance["config"]
    low, high = config.hu_window
    logits = network(torch.from_numpy(np.clip((window - low) / (high - low), 0, 1))[None, None])
    assert np.abs(logits.detach().sigmoid().numpy() - served).max() <= 5e-3
    logits.sum().backward()
    assert all(weight.grad is not None for weight in network.parameters())

    spec = export_model(network.eval(), config, tmp_path / "next", version=1)
    again, _ = run_graph(tmp_path / "next" / GRAPH_FILE, window[None, None])
    assert np.abs(again - served).max() <= 5e-3
    first = read_spec(tmp_path / "m")
    assert spec.model_copy(update={"version": 0, "sha256": first.sha256}) == first


def test_a_lesion_among_the_classes_is_asked_about(tmp_path: Path) -> None:
    torch.save(unet().state_dict(), tmp_path / "w.pth")
    classes = [None, "spleen", "liver", "duodenum", "liver tumour"]
    with pytest.raises(InvalidInput, match=r"'liver tumour' part of liver.*or null"):
        import_monai(
            tmp_path / "w.pth", describe(tmp_path, classes=classes), tmp_path / "out" / "m",
            name="theirs", scheme=ABDOMEN_ATLAS,
        )  # fmt: skip


def export_theirs(path: Path, network: nn.Module, *, dynamic: bool = True) -> None:
    """An ONNX file as somebody else makes it: x, y, z; logits; names of its own."""
    batch = {"image": {0: torch.export.Dim("n", min=1, max=8)}} if dynamic else None
    torch.onnx.export(
        network, (torch.zeros(2, 1, *PATCH),), path, input_names=["image"],
        output_names=["logits"], dynamic_shapes=None if batch is None else {"x": batch["image"]},
        opset_version=18, dynamo=True, external_data=False, verbose=False,
    )  # fmt: skip


GRAPH = {"architecture": ..., "arguments": ..., "input": "image", "output": "logits"}


def test_a_foreign_graph_answers_as_before(tmp_path: Path, window: np.ndarray) -> None:
    network = unet()
    export_theirs(tmp_path / "theirs.onnx", network)
    described = describe(tmp_path, **GRAPH)
    import_onnx(
        tmp_path / "theirs.onnx", described, tmp_path / "m", name="theirs", scheme=ABDOMEN_ATLAS
    )
    check(tmp_path / "m", expected_of(network, window), window)

    turned = describe(tmp_path / "lps", **GRAPH, orientation="LPS")
    import_onnx(
        tmp_path / "theirs.onnx",
        turned,
        tmp_path / "lps" / "m",
        name="theirs",
        scheme=ABDOMEN_ATLAS,
    )
    flipped = np.ascontiguousarray(window[:, ::-1, ::-1])
    check(tmp_path / "lps" / "m", expected_of(network, flipped)[:, :, ::-1, ::-1], window)


def _harmful(path: Path, mark: Path) -> None:
    class Harmful:
        def __reduce__(self) -> Any:
            return (os.system, (f"touch {mark}",))

    torch.save({"net": {"weight": Harmful()}}, path)


@pytest.mark.parametrize("what", ["code", "half", "text", "network", "nothing"])
def test_weights_that_cannot_be_used_are_refused(tmp_path: Path, what: str) -> None:
    path = tmp_path / "weights.pth"
    error: type[AtlasError] = InvalidInput
    if what == "code":
        _harmful(path, tmp_path / "ran")
        match = "wants to run code"
    elif what == "half":
        torch.save(unet().state_dict(), path)
        path.write_bytes(path.read_bytes()[:3000])
        error, match = CorruptFile, "cannot be read"
    elif what == "text":
        path.write_text("no weights")
        error, match = CorruptFile, "cannot be read"
    elif what == "network":
        torch.save(SegResNet(out_channels=5).state_dict(), path)
        match = "lack a tensor of the network"
    else:
        torch.save([1, 2, 3], path)
        match = "no dictionary"
    with pytest.raises(error, match=match):
        import_monai(
            path, describe(tmp_path), tmp_path / "out" / "m", name="theirs", scheme=ABDOMEN_ATLAS
        )
    assert not (tmp_path / "out").exists()
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("changed", "error", "match"),
    [
        ({"classes": CLASSES[:4]}, InvalidInput, "another shape"),
        ({"classes": [None, "femur", "skin", "bone", "fat"]}, InvalidInput, "no class is an organ"),
        ({"arguments": {"channels": [8, 16], "stride": 2}}, InvalidInput, "MONAI builds no unet"),
        ({"architecture": "os.system"}, ConfigurationError, "architecture"),
        ({"hu_window": [300, -100]}, ConfigurationError, "lower < upper.*; see docs/how-to"),
        ({"patch": [24, 16]}, ConfigurationError, "patch"),
        ({"orientation": "XYZ"}, ConfigurationError, "orientation"),
        ({"spacing": 1}, ConfigurationError, "spacing"),
    ],
)
def test_descriptions_that_cannot_work_are_refused(
    tmp_path: Path, changed: dict[str, Any], error: type[AtlasError], match: str
) -> None:
    torch.save(unet().state_dict(), tmp_path / "w.pth")
    with pytest.raises(error, match=match):
        import_monai(
            tmp_path / "w.pth",
            describe(tmp_path, **changed),
            tmp_path / "out" / "m",
            name="theirs",
            scheme=ABDOMEN_ATLAS,
        )
    assert not (tmp_path / "out").exists()


def test_weights_that_are_no_numbers_are_refused(tmp_path: Path) -> None:
    state = unet().state_dict()
    next(iter(state.values())).fill_(float("nan"))
    torch.save(state, tmp_path / "w.pth")
    with pytest.raises(InvalidInput, match="not finite"):
        import_monai(
            tmp_path / "w.pth",
            describe(tmp_path),
            tmp_path / "out" / "m",
            name="theirs",
            scheme=ABDOMEN_ATLAS,
        )
    assert not (tmp_path / "out").exists()


@pytest.fixture(scope="module")
def theirs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("onnx") / "theirs.onnx"
    export_theirs(path, unet())
    return path


@pytest.mark.parametrize(
    ("changed", "match"),
    [
        ({"input": "picture"}, "other inputs"),
        ({"output": "mask"}, "no such output"),
        ({"classes": ["liver", "spleen"]}, "logits has another shape"),
        ({"patch": [32, 16, 32]}, "image has another shape"),
        ({"axes": "zyx"}, "another shape"),
    ],
)
def test_graphs_that_are_not_as_described_are_refused(
    tmp_path: Path, theirs: Path, changed: dict[str, Any], match: str
) -> None:
    described = describe(tmp_path, **{**GRAPH, **changed})
    with pytest.raises(InvalidInput, match=match):
        import_onnx(theirs, described, tmp_path / "out" / "m", name="theirs", scheme=ABDOMEN_ATLAS)
    assert not (tmp_path / "out").exists()


def test_graphs_that_cannot_be_served_are_refused(tmp_path: Path, theirs: Path) -> None:
    described = describe(tmp_path, **GRAPH)
    half = tmp_path / "half.onnx"
    half.write_bytes(theirs.read_bytes()[:900])
    with pytest.raises(CorruptFile, match="no valid ONNX graph"):
        import_onnx(half, described, tmp_path / "out" / "m", name="theirs", scheme=ABDOMEN_ATLAS)
    model = onnx.load_model(theirs)
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 1
    fixed = tmp_path / "fixed.onnx"
    onnx.save_model(model, fixed)
    with pytest.raises(InvalidInput, match="dynamic batch"):
        import_onnx(fixed, described, tmp_path / "out" / "m", name="theirs", scheme=ABDOMEN_ATLAS)
    model = onnx.load_model(theirs)
    node = model.graph.node[0]
    node.domain = "somebody.else"
    model.opset_import.append(onnx.helper.make_opsetid("somebody.else", 1))
    foreign = tmp_path / "foreign.onnx"
    onnx.save_model(model, foreign)
    with pytest.raises(InvalidInput, match="only one runtime"):
        import_onnx(foreign, described, tmp_path / "out" / "m", name="theirs", scheme=ABDOMEN_ATLAS)
    model = onnx.load_model(theirs)
    weights = model.graph.initializer[0]
    nothing = np.full(tuple(weights.dims), np.nan, np.float32)
    weights.CopyFrom(onnx.numpy_helper.from_array(nothing, weights.name))
    diverged = tmp_path / "diverged.onnx"
    onnx.save_model(model, diverged)
    with pytest.raises(InvalidInput, match="NaN"):
        import_onnx(diverged, described, tmp_path / "out" / "m", name="t", scheme=ABDOMEN_ATLAS)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["unet", "segresnet", "swin_unetr"])
def test_published_architectures_are_built_as_described(name: str) -> None:
    described = read_description(PUBLISHED / f"abdomenatlas_{name}.yaml", WeightsDescription)
    assert tuple(described.groups(ABDOMEN_ATLAS, name)) == ABDOMEN_ATLAS.names
    assert described.intensities == (-175.0, 250.0, -175.0, 425.0)
    groups = described.groups(ABDOMEN_ATLAS, name)
    network = build(configuration(described, "theirs", groups, {}), name)
    shapes = [tuple(parameter.shape) for parameter in network.parameters()]
    assert any(shape[0] == len(ABDOMEN_ATLAS) for shape in shapes)


def test_numbers_of_numpy_in_a_checkpoint_are_harmless(tmp_path: Path) -> None:
    path = tmp_path / "c.pth"
    torch.save({"w": torch.ones(2), "dice": np.float64(0.5), "lr": [np.float32(0.1)]}, path)
    assert read_checkpoint(path)["dice"] == 0.5


def test_the_format_before_the_zip_is_read(tmp_path: Path) -> None:
    path = tmp_path / "old.pth"
    torch.save({"w": torch.arange(3)}, path, _use_new_zipfile_serialization=False)
    assert read_checkpoint(path)["w"].tolist() == [0, 1, 2]


@pytest.mark.parametrize("bomb", [compress, overlap], ids=["compressed", "overlapping"])
def test_a_zip_bomb_is_refused_before_it_is_unpacked(
    tmp_path: Path, bomb: Callable[[Path], None]
) -> None:
    path = tmp_path / "bomb.pt"
    torch.save({"w": torch.zeros(1 << 18)}, path)
    bomb(path)
    with pytest.raises(CorruptFile, match=r"bomb\.pt: .*unpacks to more than it holds"):
        import_monai(
            path, describe(tmp_path), tmp_path / "out" / "m", name="theirs", scheme=ABDOMEN_ATLAS
        )
    assert not (tmp_path / "out").exists()


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "pickle"])
def test_whatever_a_checkpoint_holds_it_is_read_or_refused(tmp_path: Path, zipped: bool) -> None:
    """Bytes changed at random: weights or one of our errors, never a traceback."""
    path = tmp_path / "c.pt"
    state = {"net": {"weight": torch.arange(4.0), "bias": torch.ones(2)}, "epoch": 3}
    torch.save(state, path, _use_new_zipfile_serialization=zipped)
    program = _program(path)
    whole = path.read_bytes()
    rng = np.random.Generator(np.random.PCG64(0))
    refused = 0
    for _ in range(300):
        changed = bytearray(program)
        for place in rng.integers(0, len(changed), 1 + int(rng.integers(3))):
            changed[place] = int(rng.integers(256))
        path.write_bytes(whole)
        _with_program(path, bytes(changed))
        try:
            read_checkpoint(path)
        except AtlasError as error:
            assert "c.pt" in str(error)
            refused += 1
    assert refused > 100


def _program(path: Path) -> bytes:
    """The pickle in a checkpoint."""
    if not zipfile.is_zipfile(path):
        return path.read_bytes()
    with zipfile.ZipFile(path) as archive:
        return archive.read(next(n for n in archive.namelist() if n.endswith("data.pkl")))


def _with_program(path: Path, program: bytes) -> None:
    if not zipfile.is_zipfile(path):
        path.write_bytes(program)
        return
    with zipfile.ZipFile(path) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for name, data in entries.items():
            archive.writestr(name, program if name.endswith("data.pkl") else data)
