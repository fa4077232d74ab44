"""Models as sites have them, in one ensemble, on phantoms: command by command, in minutes.

    python -m atlas_flows.mixed_demo        (make mixed-demo)

Two nnU-Nets of different plans that nnU-Net itself has trained, a MONAI network, and an ONNX graph
that knows four organs: each on its own grid. They are imported, become an ensemble, score and rank
cases; then every member that can learn is trained further by its own trainer, and promoted.
"""

from __future__ import annotations

import sys
from pathlib import Path

from atlas_core.errors import AtlasError
from atlas_core.phantoms import PHANTOM_ORGANS

from atlas_flows.commands.terminal import show_error
from atlas_flows.demos import kept_results
from atlas_flows.model_demo import DemoStep, run_steps
from atlas_flows.settings import Places

DEMO_MODELS = Path(__file__).resolve().parents[2] / "models" / "demo"

GRAPH_ORGANS = ("liver", "spleen", "kidney_left", "kidney_right")
"""What the ONNX graph knows."""

NNUNETS = {"fine": "nnunet_fine", "anisotropic": "nnunet_thick"}
"""Plan → model."""

MONAI = f"""
architecture: unet
arguments: {{channels: [16, 32, 64], strides: [2, 2], num_res_units: 1, norm: batch}}
classes: [{", ".join(PHANTOM_ORGANS.names)}]
spacing_mm: [8.0, 8.0, 8.0]
patch: [48, 48, 32]
hu_window: [-175, 250]
"""

GRAPH = f"""
input: image
output: probability
classes: [{", ".join(GRAPH_ORGANS)}]
activation: none
spacing_mm: [5.0, 5.0, 5.0]
patch: [64, 64, 64]
hu_window: [-175, 250]
axes: zyx
"""


def bring_models(folder: Path) -> None:
    """What a site brings beside its nnU-Nets: weights with a description, and a graph."""
    _write_weights(folder)
    _write_graph(folder)


def _write_weights(folder: Path) -> None:
    """A MONAI U-Net with seeded weights: it knows nothing yet."""
    import torch
    from monai.networks.nets import UNet

    torch.manual_seed(1)
    network = UNet(3, 1, 9, channels=(16, 32, 64), strides=(2, 2), num_res_units=1, norm="batch")
    torch.save({"state_dict": network.state_dict()}, folder / "monai.pt")
    (folder / "monai.yaml").write_text(MONAI, encoding="utf-8")


def _write_graph(folder: Path) -> None:
    """The demo U-Net as somebody else would have exported it, with four of its channels."""
    import torch
    from atlas_models.exporting import load_network
    from torch import nn

    network, config = load_network(DEMO_MODELS / "unet")
    channels = [config.organs.index(organ) for organ in GRAPH_ORGANS]

    class Some(nn.Module):
        """Probabilities of some organs."""

        def __init__(self) -> None:
            super().__init__()
            self.network = network

        def forward(self, image: torch.Tensor) -> torch.Tensor:
            return torch.sigmoid(self.network(image)[:, channels])

    x, y, z = config.patch
    torch.onnx.export(
        Some().eval(),
        (torch.zeros(1, 1, z, y, x),),
        str(folder / "graph.onnx"),
        input_names=["image"],
        output_names=["probability"],
        dynamic_axes={"image": {0: "batch"}, "probability": {0: "batch"}},
        opset_version=20,
        dynamo=False,
    )
    (folder / "graph.yaml").write_text(GRAPH, encoding="utf-8")


def mixed_steps(folder: Path, *, tuning_steps: int = 100) -> list[DemoStep]:
    """What the demo does, in order, with what `bring_models` has left in `folder`."""
    results = kept_results()
    phantoms = str(folder / "phantoms")
    members = [*NNUNETS.values(), "monai", "graph"]
    learning = [*NNUNETS.values(), "monai"]
    rates = dict.fromkeys(NNUNETS.values(), "1e-3") | {"monai": "3e-3"}
    monai, graph = folder / "monai", folder / "graph"
    return [
        DemoStep(
            "phantoms with all their labels",
            ("phantoms", phantoms, "--cases", "8", "--columns", "80", "--hard", "0.25",
             "--labels", "truth", "--seed", "77"),
        ),
        DemoStep(
            "into catalog and case store",
            ("import", phantoms, "--dataset", "phantoms", "--preset", "phantoms"),
        ),
        DemoStep("Triton with the demo models, and the attention service", ("up",)),
        *(
            DemoStep(
                f"an nnU-Net of the plan {plan}",
                ("models", "import", "--name", name, "--nnunet", str(results[plan]),
                 "--orientation", "RAS"),
            )
            for plan, name in NNUNETS.items()
        ),
        DemoStep(
            "a MONAI network, not trained yet",
            ("models", "import", "--name", "monai", "--weights", f"{monai}.pt",
             "--config", f"{monai}.yaml"),
        ),
        DemoStep(
            "an ONNX graph of four organs",
            ("models", "import", "--name", "graph", "--onnx", f"{graph}.onnx",
             "--config", f"{graph}.yaml"),
        ),
        DemoStep("an ensemble of all four", ("ensemble", "create", "mixed", *members)),
        DemoStep("into use: the demo models are unloaded", ("ensemble", "use", "mixed")),
        DemoStep("attention maps and pseudo labels", ("score",)),
        DemoStep("which cases need an annotator most", ("ranking",)),
        *(
            step
            for name in learning
            for step in (
                DemoStep(
                    f"step 7: {name} learns further, by its own trainer",
                    ("models", "finetune", f"{name}@0", "--set", f"steps={tuning_steps}",
                     "--set", f"learning_rate={rates[name]}", "--validation-share", "0.3"),
                ),
                DemoStep(
                    "it goes into service while the service runs",
                    ("models", "promote", f"{name}@1", "--margin", "0.05", "--why", "demo"),
                ),
            )
        ),
        DemoStep("the graph cannot learn", ("models", "finetune", "graph@0"), refused=True),
        DemoStep("the members, and who of them is new", ("ensemble", "show", "mixed")),
        DemoStep("the same cases by the new members", ("score",)),
        DemoStep("the list now", ("ranking",)),
    ]  # fmt: skip


def main() -> int:
    """Exit status."""
    places = Places.read()
    kept = places.embedded.home / "mixed-demo-models"
    try:
        places.embedded.make_home()
        kept.mkdir(exist_ok=True)
        bring_models(kept)
        run_steps(
            places, "mixed-demo", ("triton", "attention", "prefect"), lambda _: mixed_steps(kept)
        )
    except AtlasError as error:
        show_error(str(error))
        return 2
    except KeyboardInterrupt:
        show_error("interrupted")
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
