"""Export: the ONNX file computes what the network computes, says what it is, and comes back."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from atlas_core.errors import CorruptFile, InvalidInput
from atlas_core.model_spec import INPUT_NAME, OUTPUT_NAME, ModelSpec
from atlas_models.config import ForeignNetwork, TrainingConfig
from atlas_models.exported_network import ExportedNetwork
from atlas_models.exporting import export_model, load_network, measure_parity
from atlas_models.exporting.onnx_export import SPEC_KEY
from atlas_models.exporting.parity import BYTE_TOLERANCE, PROBABILITY_TOLERANCE
from atlas_models.networks import build_network
from atlas_models.serving import GRAPH_FILE, read_spec
from torch import nn

pytestmark = pytest.mark.slow

CONFIG = TrainingConfig(
    name="tiny",
    architecture="nnunet",
    channels=(8, 16, 16),
    organs=("liver", "spleen", "aorta"),
    spacing_mm=(4.0, 5.0, 6.0),
    patch=(32, 16, 24),  # three lengths, so that a swapped axis shows
    seed=3,
    steps=1,
    learning_rate=1e-2,
)


def windows(count: int, config: TrainingConfig = CONFIG) -> list[np.ndarray]:
    rng = np.random.Generator(np.random.PCG64(0))
    shape = config.patch[::-1]
    return [rng.normal(0.0, 300.0, shape).astype(np.float32) for _ in range(count)]


@pytest.fixture(scope="module")
def network() -> nn.Module:
    network = build_network(CONFIG).eval()
    # A fresh network has equal biases, and says "rare" everywhere: make it say something.
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    return network


@pytest.fixture(scope="module")
def folder(network: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("exported") / "tiny"
    export_model(network, CONFIG, folder, version=4)
    return folder


def test_the_graph_is_valid_and_says_what_it_is(folder: Path) -> None:
    spec = read_spec(folder)
    assert spec.sha256 == hashlib.sha256((folder / GRAPH_FILE).read_bytes()).hexdigest()
    assert (spec.name, spec.version, spec.organs) == ("tiny", 4, CONFIG.organs)
    assert (spec.patch, spec.spacing_mm, spec.hu_window) == (
        CONFIG.patch, CONFIG.spacing_mm, CONFIG.hu_window,
    )  # fmt: skip
    model = onnx.load_model(folder / GRAPH_FILE)
    onnx.checker.check_model(model, full_check=True)
    inside = {prop.key: prop.value for prop in model.metadata_props}
    assert ModelSpec.model_validate_json(
        inside[SPEC_KEY][:-1] + f',"sha256":"{spec.sha256}"}}'
    ) == (spec)


def test_the_graph_says_nothing_about_the_machine_it_was_made_on(folder: Path) -> None:
    data = (folder / GRAPH_FILE).read_bytes()
    for trace in (b"/work", b"/home", b"site-packages", b".py", str(Path.cwd()).encode()):
        assert trace not in data


def test_names_types_and_shapes_are_those_of_the_contract(folder: Path) -> None:
    session = onnxruntime.InferenceSession(folder / GRAPH_FILE, providers=["CPUExecutionProvider"])
    (ct,), (soft,) = session.get_inputs(), session.get_outputs()
    x, y, z = CONFIG.patch
    assert (ct.name, ct.type, ct.shape[1:]) == (INPUT_NAME, "tensor(float)", [1, z, y, x])
    assert (soft.name, soft.type, soft.shape[1:]) == (OUTPUT_NAME, "tensor(uint8)", [3, z, y, x])
    assert isinstance(ct.shape[0], str)
    assert ct.shape[0] == soft.shape[0]


def test_it_computes_what_the_network_computes(network: nn.Module, folder: Path) -> None:
    parity = measure_parity(network, CONFIG, folder, windows(3))
    assert parity.probability <= PROBABILITY_TOLERANCE
    assert parity.byte <= BYTE_TOLERANCE


def test_a_graph_that_differs_is_refused(folder: Path) -> None:
    other = build_network(CONFIG.model_copy(update={"seed": 99})).eval()
    with pytest.raises(InvalidInput, match="differs"):
        measure_parity(other, CONFIG, folder, windows(1))


def test_a_batch_is_its_windows_one_by_one(folder: Path) -> None:
    session = onnxruntime.InferenceSession(folder / GRAPH_FILE, providers=["CPUExecutionProvider"])
    batch = np.stack(windows(3))[:, None]
    (together,) = session.run(None, {INPUT_NAME: batch})
    for window, expected in zip(batch, together, strict=True):
        (alone,) = session.run(None, {INPUT_NAME: window[None]})
        assert np.abs(alone[0].astype(int) - expected.astype(int)).max() <= BYTE_TOLERANCE


def test_below_the_hu_window_everything_is_air(folder: Path) -> None:
    session = onnxruntime.InferenceSession(folder / GRAPH_FILE, providers=["CPUExecutionProvider"])
    shape = (1, 1, *CONFIG.patch[::-1])
    (scale_floor,) = session.run(None, {INPUT_NAME: np.full(shape, -175.0, np.float32)})
    (padding,) = session.run(None, {INPUT_NAME: np.full(shape, -3024.0, np.float32)})
    assert np.array_equal(scale_floor, padding)


def test_an_exported_network_can_be_trained_on(network: nn.Module, folder: Path) -> None:
    loaded, config = load_network(folder)
    assert config == CONFIG
    window = torch.from_numpy(windows(1)[0])[None, None]
    with torch.no_grad():
        before, after = (
            ExportedNetwork(net, CONFIG.hu_window).probabilities(window)
            for net in (network, loaded)
        )
    assert torch.equal(before, after)


def test_a_damaged_graph_is_not_loaded(folder: Path, tmp_path: Path) -> None:
    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    data = bytearray((tmp_path / GRAPH_FILE).read_bytes())
    data[len(data) // 2] ^= 1
    (tmp_path / GRAPH_FILE).write_bytes(data)
    with pytest.raises(CorruptFile):
        load_network(tmp_path)


def test_a_foreign_graph_is_not_loaded(folder: Path, tmp_path: Path) -> None:
    model = onnx.load_model(folder / GRAPH_FILE)
    del model.metadata_props[:]
    data = model.SerializeToString()
    spec = read_spec(folder).model_copy(update={"sha256": hashlib.sha256(data).hexdigest()})
    (tmp_path / GRAPH_FILE).write_bytes(data)
    (tmp_path / "model.json").write_text(spec.model_dump_json())
    with pytest.raises(InvalidInput, match="does not say how it was trained"):
        load_network(tmp_path)


def test_weights_are_stored_in_half_the_bytes(network: nn.Module, folder: Path) -> None:
    parameters = sum(parameter.numel() for parameter in network.parameters())
    assert (folder / GRAPH_FILE).stat().st_size < 3 * parameters + 60_000


SMALL: dict[str, dict[str, object]] = {
    "unet": {"channels": (8, 16), "patch": (16, 24, 32)},
    "nnunet": {"channels": (8, 16, 16), "patch": (16, 24, 32)},
    "swin_unetr": {"channels": (12,), "bottleneck_block": False, "patch": (32, 32, 64)},
    "segresnet": {"channels": (8,), "depths": (1, 1, 1), "patch": (16, 24, 32)},
    "unetr": {"channels": (8,), "hidden": 24, "heads": (3,), "patch": (16, 32, 48)},
}

MINUTES = ("swin_unetr", "unetr")
"""Take minutes to export, however small."""


@pytest.mark.parametrize(
    "architecture",
    [pytest.param(name, marks=[pytest.mark.long] * (name in MINUTES)) for name in SMALL],
)
@pytest.mark.slow
def test_every_architecture_comes_back_by_its_weights(architecture: str, tmp_path: Path) -> None:
    config = CONFIG.model_validate(
        CONFIG.model_dump() | {"architecture": architecture} | SMALL[architecture]
    )
    network = build_network(config).eval()
    export_model(network, config, tmp_path / "m")
    real = windows(1, config)[0]
    real[4:12, 4:12, 4:12] = 60.0  # something like tissue in something like noise
    parity = measure_parity(network, config, tmp_path / "m", [*windows(1, config), real])
    assert parity.probability <= 1e-4
    loaded, told = load_network(tmp_path / "m")
    assert told == config
    for name, tensor in network.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor), name


def test_a_batch_norm_that_the_exporter_folds_is_not_rounded_again(tmp_path: Path) -> None:
    low, high = CONFIG.hu_window
    foreign = ForeignNetwork(
        arguments={"channels": [8, 16], "strides": [2], "norm": "batch"},
        outputs=3,
        activation="sigmoid",
        channels=((0,), (1,), (2,)),
        shift=low,
        scale=high - low,
        axes=(0, 1, 2),
        flipped=(),
    )
    config = CONFIG.model_copy(update={"architecture": "unet", "foreign": foreign})
    network = build_network(config).train()
    torch.manual_seed(1)
    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, nn.BatchNorm3d):
                module.weight.uniform_(0.5, 4.0)  # as training leaves it: nothing float16 holds
        for _ in range(8):
            network(torch.rand(2, 1, 16, 16, 16))  # its running means and variances
    export_model(network.eval(), config, tmp_path / "m")
    ops = {node.op_type for node in onnx.load_model(tmp_path / "m" / GRAPH_FILE).graph.node}
    assert "BatchNormalization" not in ops  # the exporter does fold it
    assert measure_parity(network, config, tmp_path / "m", windows(2)).probability < 1e-5


def test_weights_of_another_network_are_refused(folder: Path, tmp_path: Path) -> None:
    import shutil

    wider = CONFIG.model_copy(update={"channels": (8, 16, 24)})
    export_model(build_network(wider), wider, tmp_path / "other")
    shutil.copytree(folder, tmp_path / "m")
    data = (tmp_path / "other" / "weights.safetensors").read_bytes()
    mixed = data.replace(b"[8,16,24]", b"[8,16,16]")
    assert mixed != data
    (tmp_path / "m" / "weights.safetensors").write_bytes(mixed)
    with pytest.raises(InvalidInput, match="another shape"):
        load_network(tmp_path / "m")
    (tmp_path / "m" / "weights.safetensors").write_bytes(data[: len(data) // 2])
    with pytest.raises(CorruptFile, match="weights"):
        load_network(tmp_path / "m")


def test_a_network_of_no_numbers_is_not_exported(network: nn.Module, tmp_path: Path) -> None:
    broken = build_network(CONFIG)
    next(iter(broken.parameters())).data.fill_(float("nan"))
    with pytest.raises(InvalidInput, match="not finite"):
        export_model(broken, CONFIG, tmp_path / "out" / "m")
    assert not (tmp_path / "out").exists()
