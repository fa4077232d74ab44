"""The demonstrations type commands that exist, and the graph that one of them brings is a model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from atlas_core.phantoms import PHANTOM_ORGANS
from atlas_flows.cli import app
from atlas_flows.mixed_demo import DEMO_MODELS, GRAPH_ORGANS, NNUNETS, bring_graph, mixed_steps
from atlas_flows.model_demo import DemoStep, demo_steps
from atlas_models.exporting import load_network
from atlas_models.exporting.parity import run_graph
from atlas_models.importing import import_onnx
from atlas_models.serving import GRAPH_FILE
from typer.main import get_command


def parse(arguments: tuple[str, ...]) -> None:
    """As the terminal does it: fails at an unknown command, option or value."""
    command: Any = get_command(app)
    context, rest = None, list(arguments)
    while hasattr(command, "resolve_command"):
        context = command.make_context("atlasloop", rest, parent=context)
        _, command, rest = command.resolve_command(
            context, [*context._protected_args, *context.args]
        )
    command.make_context("atlasloop", rest, parent=context)


@pytest.mark.parametrize("steps_in", [demo_steps, mixed_steps])
def test_every_step_is_a_command(steps_in: Any, tmp_path: Path) -> None:
    steps: list[DemoStep] = steps_in(tmp_path)
    for step in steps:
        for argument in step.arguments:  # what an earlier step, or the demo itself, writes
            if argument.startswith(str(tmp_path)) and Path(argument).suffix:
                Path(argument).touch()
            elif argument.startswith(str(tmp_path)):
                Path(argument).mkdir(exist_ok=True)
        parse(step.arguments)
    assert any(step.refused for step in steps)


def test_all_that_can_learn_is_trained_and_promoted(tmp_path: Path) -> None:
    typed = [step.arguments for step in mixed_steps(tmp_path) if not step.refused]
    for name in (*NNUNETS.values(), "monai"):
        assert any(one[:2] == ("models", "finetune") and name in one[2] for one in typed)
        assert any(one[:3] == ("models", "promote", name) for one in typed)


@pytest.mark.slow
def test_the_graph_is_taken_and_answers_as_the_network_it_was_made_of(tmp_path: Path) -> None:
    bring_graph(tmp_path)
    graph, described = tmp_path / "graph.onnx", tmp_path / "graph.yaml"
    imported = import_onnx(graph, described, tmp_path / "m", name="graph", scheme=PHANTOM_ORGANS)
    assert set(imported.spec.organs) == set(GRAPH_ORGANS)
    network, config = load_network(DEMO_MODELS / "unet")
    hu = np.random.default_rng(0).normal(0.0, 200.0, (1, 1, *config.patch[::-1])).astype(np.float32)
    low, high = config.hu_window
    scaled = torch.from_numpy(np.clip((hu - low) / (high - low), 0.0, 1.0))
    with torch.no_grad():
        expected = network(scaled).sigmoid()[0].numpy()
    _, answered = run_graph(tmp_path / "m" / GRAPH_FILE, hu)
    for channel, organ in enumerate(imported.spec.organs):
        said = expected[config.organs.index(organ)] * 255.0
        assert np.abs(answered[0, channel] - said).max() < 1.0
