"""Models as sites have them, in one ensemble, on phantoms: command by command, in minutes.

    python -m atlas_flows.mixed_demo        (make mixed-demo)

Two nnU-Nets of different plans, as nnU-Net's own trainer left them; a MONAI network; and an ONNX
graph of four organs: each on its own grid, with its own organs. They are imported, become an
ensemble, score and rank cases; then every member that can learn is trained further by its own
trainer, and promoted. The last line is one JSON object.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from atlas_core.catalog import Catalog, ensemble_history, promotions
from atlas_core.phantoms import PHANTOM_ORGANS
from atlas_core.records import Reading
from atlas_embedded.settings import ComponentName

from atlas_flows.commands.terminal import write_text
from atlas_flows.demos import kept_results
from atlas_flows.model_demo import DemoOutcome, DemoStep, exit_status, run_steps
from atlas_flows.settings import Places

DEMO_MODELS = Path(__file__).resolve().parents[2] / "models" / "demo"

ENSEMBLE = "mixed"

NNUNETS = {"fine": "nnunet_fine", "thick": "nnunet_thick"}
"""Plan → model."""

GRAPH_ORGANS = ("liver", "spleen", "kidney_left", "kidney_right")
"""What the ONNX graph knows."""

MONAI = f"""
architecture: unet
arguments: {{channels: [16, 32, 64], strides: [2, 2], num_res_units: 1, norm: instance}}
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
    """What a site brings beside its nnU-Nets: weights, and a graph, each with a description."""
    bring_weights(folder)
    bring_graph(folder)


def bring_weights(folder: Path) -> None:
    """A MONAI U-Net with seeded weights: it knows nothing yet."""
    import torch
    from monai.networks.nets import UNet

    torch.manual_seed(1)
    outputs = len(PHANTOM_ORGANS.names)
    network = UNet(
        3, 1, outputs, channels=(16, 32, 64), strides=(2, 2), num_res_units=1, norm="instance"
    )
    torch.save({"state_dict": network.state_dict()}, folder / "monai.pt")
    (folder / "monai.yaml").write_text(MONAI, encoding="utf-8")


def bring_graph(folder: Path) -> None:
    """The demo U-Net as somebody else would have exported it, with four of its channels."""
    import torch
    from atlas_models.exporting import load_network, quiet_exporter
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
    with quiet_exporter():
        torch.onnx.export(
            Some().eval(),
            (torch.zeros(2, 1, z, y, x),),
            folder / "graph.onnx",
            input_names=["image"],
            output_names=["probability"],
            dynamic_shapes={"image": {0: torch.export.Dim("batch", min=1, max=64)}},
            opset_version=20,
            dynamo=True,
            external_data=False,
        )
    (folder / "graph.yaml").write_text(GRAPH, encoding="utf-8")


def mixed_steps(
    folder: Path, *, first_steps: int = 100, tuning_steps: int = 20, labelled: int = 10
) -> list[DemoStep]:
    """What the demo does, in order; `folder` holds what `bring_models` wrote, and takes phantoms.

    Args:
        first_steps: of the MONAI network's first training, which starts from nothing.
        tuning_steps: of each fine-tuning.
        labelled: phantoms with labels, to learn from and to be judged by.
    """
    known, new = str(folder / "labelled"), str(folder / "new")
    monai, graph = folder / "monai", folder / "graph"
    learning = {"nnunet_fine@0": "1e-3", "nnunet_thick@0": "1e-3", "monai@1": "1e-3"}
    held_out = ("--dataset", "labelled", "--validation-share", "0.3")
    return [
        DemoStep(
            "phantoms that people have labelled",
            ("phantoms", known, "--cases", str(labelled), "--columns", "80", "--hard", "0",
             "--labels", "truth", "--seed", "77"),
        ),
        DemoStep(
            "and such that nobody has, some of them hard",
            ("phantoms", new, "--cases", "6", "--columns", "80", "--hard", "0.4", "--seed", "78"),
        ),
        *(
            DemoStep(
                f"{name} into catalog and case store",
                ("import", cases, "--dataset", name, "--preset", "phantoms"),
            )
            for name, cases in (("labelled", known), ("new", new))
        ),
        DemoStep("Triton with the demo models, and the attention service", ("up",)),
        *(
            DemoStep(
                f"an nnU-Net of the plan {plan}",
                ("models", "import", "--name", name, "--nnunet", str(kept_results()[plan]),
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
            "it is trained by our trainer from the file it came from",
            ("models", "finetune", "monai@0", "--set", f"steps={first_steps}",
             "--set", "learning_rate=4e-3", *held_out),
        ),
        DemoStep(
            "an ONNX graph of four organs",
            ("models", "import", "--name", "graph", "--onnx", f"{graph}.onnx",
             "--config", f"{graph}.yaml"),
        ),
        DemoStep(
            "an ensemble of all four: nothing is loaded yet",
            ("ensemble", "create", ENSEMBLE, *NNUNETS.values(), "monai@1", "graph"),
        ),
        DemoStep("into use: the demo models are unloaded", ("ensemble", "use", ENSEMBLE)),
        DemoStep("attention maps and pseudo labels", ("score", "--dataset", "new")),
        DemoStep("which cases need an annotator most", ("ranking", "--dataset", "new")),
        *(
            step
            for model, rate in learning.items()
            for step in (
                DemoStep(
                    f"step 7: {model} learns further, by its own trainer",
                    ("models", "finetune", model, "--set", f"steps={tuning_steps}",
                     "--set", f"learning_rate={rate}", *held_out),
                ),
                DemoStep(
                    "it goes into service while the service runs",
                    ("models", "promote", model.split("@")[0], "--dataset", "labelled",
                     "--margin", "0.1", "--why", "demo"),
                ),
            )
        ),
        DemoStep("the graph cannot learn, and says so", ("models", "finetune", "graph@0"),
                 refused=True),
        DemoStep("the members, and which of them are new", ("ensemble", "show", ENSEMBLE)),
        DemoStep("the same cases by the new members", ("score", "--dataset", "new")),
        DemoStep("the list now: of the new members alone", ("ranking", "--dataset", "new")),
    ]  # fmt: skip


def run_mixed_demo(places: Places, **sizes: int) -> dict[str, Any]:
    """Run every step; `sizes`: see `mixed_steps`.

    Returns:
        See `what_happened`.

    Raises:
        AtlasError, Conflict: see `run_steps`.
    """
    parts: tuple[ComponentName, ...] = ("triton", "attention", "prefect")

    def steps_in(folder: Path) -> list[DemoStep]:
        bring_models(folder)
        return mixed_steps(folder, **sizes)

    outcomes = run_steps(places, "mixed-demo", parts, steps_in)
    # `run_steps` has pointed this process to the demo's stack.
    with Catalog.open(Places.read().catalog_url) as catalog:
        return what_happened(catalog, outcomes)


def what_happened(catalog: Catalog, outcomes: Sequence[DemoOutcome]) -> dict[str, Any]:
    """The last line.

    Returns:
        members at first and now; for each of the two, how many cases it ranked, the first of them
        and how many voices each organ had there; the versions that were fine-tuned and promoted,
        with mean Dice on held-out phantoms before and after; what was refused, and why; seconds.
    """
    history = ensemble_history(catalog, ENSEMBLE)
    members = [{m.model.name: m.model.version for m in one.ensemble.members} for one in history]
    lists = []
    for key in dict.fromkeys(one.ensemble.key for one in history):
        ranked = catalog.ranking(Reading.PAPER, key)
        if ranked and (score := catalog.score(ranked[0].case_id, Reading.PAPER, key)):
            lists.append(
                {
                    "cases": len(ranked),
                    "first": ranked[0].case_id,
                    "disagreement": ranked[0].disagreement,
                    "voices": {organ.organ: organ.voices for organ in score.organs},
                }
            )
    return {
        "members": members[0],
        "members_now": members[-1],
        "ranked": lists,
        "finetuned": {
            f"{one.model.name}@{one.model.version}": {
                "dice_before": round(one.evidence["mean_dice_before"], 4),
                "dice": round(one.evidence["mean_dice"], 4),
                "held_out_cases": int(one.evidence["cases"]),
                "promoted": members[-1][one.model.name] == one.model.version,
            }
            for one in promotions(catalog)
            if "mean_dice_before" in one.evidence
        },
        "refused": {" ".join(o.step.arguments): o.refusal for o in outcomes if o.refusal},
        "seconds": round(sum(outcome.seconds for outcome in outcomes), 1),
    }


if __name__ == "__main__":
    sys.exit(exit_status(lambda places: write_text(None, json.dumps(run_mixed_demo(places)))))
