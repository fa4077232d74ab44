"""A training run as a whole: killed and taken up, several processes, validation, bad input."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from atlas_core.errors import Conflict, CorruptFile, GridMismatch, InvalidInput, UnknownLabel
from atlas_core.geometry import VolumeGeometry
from atlas_core.organs import ABDOMEN_ATLAS
from atlas_models.config import TrainingConfig
from atlas_models.exporting import load_weights, read_weights, write_weights
from atlas_models.exporting.weights import network_from
from atlas_models.networks import build_network
from atlas_models.training import (
    Diverged,
    PatchSampler,
    RunOptions,
    TrainedNetwork,
    TrainingCase,
    TrainingProgress,
    finetune,
    train,
)
from atlas_models.training.patches import prepare_case
from atlas_models.training.run_state import CHECKPOINT_FILE
from bombs import compress
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tiny_training import (
    CASES,
    HELD_OUT,
    TINY,
    same_weights,
    tiny_config,
    two_process_config,
)

pytestmark = pytest.mark.slow

TESTS = str(Path(__file__).parents[3])


# --- killed and taken up --------------------------------------------------------------------------

KILLED = """
import os, signal, sys
from pathlib import Path
import torch
torch.set_num_threads(1)
sys.path.insert(0, {tests!r})
from tiny_training import CASES, HELD_OUT, TINY
from atlas_models.training import RunOptions, train

def die(progress):
    if progress.step == {step}:
        os.kill(os.getpid(), signal.SIGKILL)

train(TINY, CASES, validation=HELD_OUT, on_progress=die,
      run=RunOptions(Path({folder!r}), checkpoint_every=3, accelerator="cpu"))
"""


@pytest.fixture(scope="module")
def undisturbed() -> TrainedNetwork:
    torch.set_num_threads(1)
    return train(TINY, CASES, validation=HELD_OUT, run=RunOptions(accelerator="cpu"))


@pytest.mark.parametrize("step", [2, 7], ids=["before-a-checkpoint", "after-one"])
def test_a_killed_run_ends_as_an_undisturbed_one(
    step: int, undisturbed: TrainedNetwork, tmp_path: Path
) -> None:
    script = KILLED.format(tests=TESTS, step=step, folder=str(tmp_path))
    killed = subprocess.run([sys.executable, "-c", script], capture_output=True, check=False)
    assert killed.returncode == -signal.SIGKILL, killed.stderr.decode()
    steps: list[int] = []
    torch.set_num_threads(1)
    again = train(
        TINY, CASES, validation=HELD_OUT,
        run=RunOptions(tmp_path, checkpoint_every=3, accelerator="cpu"),
        on_progress=lambda progress: steps.append(progress.step),
    )  # fmt: skip
    assert steps == list(range(step // 3 * 3 + 1, TINY.steps + 1))
    assert again.losses == undisturbed.losses
    assert again.validations == undisturbed.validations
    assert same_weights(again, undisturbed)


PAPERLIKE = tiny_config(
    optimiser="adam", schedule="plateau", augmentation="full", foreground_share=0.5,
    precision="bfloat16", patience=2, validate_every=2,
)  # fmt: skip
"""What the paper's configurations switch on, at a hand's size."""


class PowerCut(Exception):
    """Ends a run at a step; what is on disk is all that the next attempt has."""


@pytest.mark.parametrize("config", [TINY, PAPERLIKE], ids=["tiny", "paperlike"])
def test_a_run_that_ends_at_every_single_step_arrives_all_the_same(
    config: TrainingConfig, tmp_path: Path
) -> None:
    torch.set_num_threads(1)
    undisturbed = train(config, CASES, validation=HELD_OUT, run=RunOptions(accelerator="cpu"))

    def die(progress: TrainingProgress) -> None:
        raise PowerCut

    run = RunOptions(tmp_path, checkpoint_every=1, accelerator="cpu")
    deaths = 0
    while True:
        try:
            arrived = train(config, CASES, validation=HELD_OUT, run=run, on_progress=die)
            break
        except PowerCut:
            deaths += 1
    assert deaths == len(undisturbed.losses)
    assert arrived.losses == undisturbed.losses
    assert arrived.validations == undisturbed.validations
    assert same_weights(arrived, undisturbed)


@pytest.mark.parametrize("config", [TINY, PAPERLIKE], ids=["tiny", "paperlike"])
def test_loader_threads_change_nothing(config: TrainingConfig) -> None:
    torch.set_num_threads(1)
    one = train(config, CASES, run=RunOptions(accelerator="cpu"))
    ahead = train(config, CASES, run=RunOptions(accelerator="cpu", loaders=4))
    assert ahead.losses == one.losses
    assert same_weights(ahead, one)


def test_a_finished_run_is_not_trained_again(tmp_path: Path) -> None:
    first = train(TINY, CASES, run=RunOptions(tmp_path, accelerator="cpu"))
    said: list[TrainingProgress] = []
    again = train(TINY, CASES, run=RunOptions(tmp_path, accelerator="cpu"), on_progress=said.append)
    assert said == []
    assert same_weights(first, again)


def test_a_checkpoint_of_other_data_is_not_continued(tmp_path: Path) -> None:
    config = TINY.model_copy(update={"steps": 2})
    train(config, CASES, run=RunOptions(tmp_path, accelerator="cpu"))
    before = (tmp_path / CHECKPOINT_FILE).read_bytes()
    with pytest.raises(Conflict, match=r"checkpoint\.pt: the folder.*--run-folder"):
        train(config, CASES[:3], run=RunOptions(tmp_path, accelerator="cpu"))
    with pytest.raises(Conflict):
        train(config, CASES, run=RunOptions(tmp_path, data_key="other labels", accelerator="cpu"))
    assert (tmp_path / CHECKPOINT_FILE).read_bytes() == before


@pytest.mark.parametrize("damage", ["cut", "other", "pickle", "bomb"])
def test_a_damaged_checkpoint_is_named_and_left_alone(damage: str, tmp_path: Path) -> None:
    config = TINY.model_copy(update={"steps": 2})
    train(config, CASES, run=RunOptions(tmp_path, accelerator="cpu"))
    path = tmp_path / CHECKPOINT_FILE
    match damage:
        case "cut":
            path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
        case "other":
            torch.save({"step": 1}, path)
        case "pickle":
            torch.save({"run": Path("code that a pickle would run")}, path)
        case "bomb":
            compress(path)
    data = path.read_bytes()
    with pytest.raises(CorruptFile, match=r"checkpoint\.pt.*delete it"):
        train(config, CASES, run=RunOptions(tmp_path, accelerator="cpu"))
    assert path.read_bytes() == data


# --- validation and curves ------------------------------------------------------------------------


def test_the_best_weights_are_kept_and_the_curves_are_on_disk(tmp_path: Path) -> None:
    config = TINY.model_copy(update={"steps": 60, "validate_every": 20})
    trained = train(config, CASES, validation=HELD_OUT, run=RunOptions(tmp_path, accelerator="cpu"))
    assert [v.step for v in trained.validations] == [20, 40, 60]
    assert trained.best is not None
    assert trained.best.mean_dice == max(v.mean_dice for v in trained.validations)
    assert trained.best.dice["liver"] > 0.6  # a bright ball is learnt in a minute
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")
    events = EventAccumulator(str(tmp_path / "events"))
    events.Reload()
    assert [event.step for event in events.Scalars("loss")] == list(range(1, 61))
    assert [event.step for event in events.Scalars("dice/mean")] == [20, 40, 60]
    noted = np.array([event.value for event in events.Scalars("loss")])
    assert np.allclose(noted, trained.losses)


def test_a_run_stops_when_nothing_gets_better() -> None:
    # A rate of almost nothing: Dice cannot rise.
    config = TINY.model_copy(
        update={"steps": 40, "validate_every": 2, "patience": 2, "learning_rate": 1e-12}
    )
    trained = train(config, CASES, validation=HELD_OUT, run=RunOptions(accelerator="cpu"))
    assert len(trained.losses) == 6
    assert trained.best == trained.validations[0]


@pytest.mark.parametrize("schedule", ["one_cycle", "poly", "plateau", "constant"])
@pytest.mark.parametrize("optimiser", ["adamw", "adam", "sgd"])
def test_every_optimiser_and_schedule_takes_steps(optimiser: str, schedule: str) -> None:
    config = TINY.model_copy(update={"steps": 4, "optimiser": optimiser, "schedule": schedule,
                                     "validate_every": 2})  # fmt: skip
    trained = train(config, CASES, run=RunOptions(accelerator="cpu"))
    fresh = build_network(config).state_dict()
    assert any(not torch.equal(fresh[name], tensor) for name, tensor in trained.weights().items())


def test_mixed_precision_computes_in_bfloat16_and_trains_float32_weights() -> None:
    exact, mixed = (
        train(tiny_config(steps=4, precision=precision), CASES, run=RunOptions(accelerator="cpu"))
        for precision in ("float32", "bfloat16")
    )
    assert all(tensor.dtype == torch.float32 for tensor in mixed.weights().values())
    assert mixed.losses != exact.losses  # it was not float32 all along
    assert mixed.losses == pytest.approx(exact.losses, rel=0.02)


def test_a_softmax_makes_probabilities_of_organs_that_exclude_each_other() -> None:
    config = TINY.model_copy(update={"activation": "softmax"})
    network = build_network(config).eval()
    scaled = torch.rand(1, 1, 16, 16, 16)
    with torch.no_grad():
        soft = torch.sigmoid(network(scaled))
        expected = network.head(network.trunk(scaled)).softmax(dim=1)[:, :-1]  # type: ignore[union-attr,operator]
    assert soft.shape == (1, 2, 16, 16, 16)
    assert torch.allclose(soft, expected, atol=1e-6)
    assert soft.sum(dim=1).max() <= 1.0 + 1e-5
    longer = config.model_copy(update={"steps": 60, "validate_every": 60})
    trained = train(longer, CASES, validation=HELD_OUT, run=RunOptions(accelerator="cpu"))
    assert trained.best is not None
    assert trained.best.dice["liver"] > 0.6


# --- fine-tuning ----------------------------------------------------------------------------------


def test_finetuning_starts_from_the_weights(tmp_path: Path) -> None:
    first = train(TINY, CASES, run=RunOptions(accelerator="cpu"))
    write_weights(first.network, TINY, tmp_path)
    stored, config = read_weights(tmp_path)
    assert config == TINY
    still = TINY.model_copy(update={"steps": 1, "learning_rate": 1e-12, "weight_decay": 0.0})
    tuned = finetune(stored, still, CASES, run=RunOptions(accelerator="cpu"))
    for name, tensor in tuned.weights().items():
        assert torch.allclose(tensor, stored[name], atol=1e-6)
    network, _ = network_from(tmp_path)
    assert all(torch.equal(a, stored[n]) for n, a in network.state_dict().items())


def test_weights_that_do_not_fit_change_nothing() -> None:
    network = build_network(TINY)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    good = {name: tensor + 1 for name, tensor in before.items()}
    name = sorted(good)[0]
    cut = {key: tensor for key, tensor in good.items() if key != name}
    for wrong, words in (
        (cut, f"lack keys.*{name}.*the configuration that they were trained with"),
        (good | {"more": torch.zeros(1)}, "have keys.*more"),
        (good | {name: torch.zeros(1, 2, 3)}, f"{name} has another shape"),
    ):
        with pytest.raises(InvalidInput, match=f"m0.safetensors.*{words}"):
            load_weights(network, wrong, "m0.safetensors")
        assert all(torch.equal(before[key], t) for key, t in network.state_dict().items())


def test_layers_with_two_names_are_stored_once(tmp_path: Path) -> None:
    config = TINY.model_copy(update={"architecture": "nnunet", "channels": (8, 8, 16)})
    network = build_network(config)
    write_weights(network, config, tmp_path)
    stored, _ = read_weights(tmp_path)
    assert len(stored) < len(network.state_dict())
    again, _ = network_from(tmp_path)
    for name, tensor in network.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor.half().float()), name


def test_damaged_weights_are_named(tmp_path: Path) -> None:
    path = write_weights(build_network(TINY), TINY, tmp_path)
    path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(CorruptFile, match=r"weights\.safetensors"):
        read_weights(tmp_path)


def test_weights_that_are_no_numbers_are_not_written(tmp_path: Path) -> None:
    network = build_network(TINY)
    with torch.no_grad():
        next(network.parameters()).fill_(float("nan"))
    with pytest.raises(InvalidInput, match="float16"):
        write_weights(network, TINY, tmp_path)
    assert list(tmp_path.iterdir()) == []


# --- bad input ------------------------------------------------------------------------------------


def test_an_empty_training_set_is_refused() -> None:
    with pytest.raises(InvalidInput, match="at least one"):
        train(TINY, [])
    with pytest.raises(InvalidInput, match="at least one"):
        PatchSampler([], TINY.patch, 0)
    silent = [TrainingCase(c.ct, c.target, np.zeros(2, np.float32), id=c.id) for c in CASES]
    with pytest.raises(InvalidInput, match="no case has a label"):
        train(TINY, silent)


def test_cases_of_other_organs_are_refused() -> None:
    case = CASES[0]
    more = TrainingCase(case.ct, case.target[[0, 1, 1]], np.ones(3, np.float32), id="case-9")
    with pytest.raises(InvalidInput, match=r"case-9.*expected 2, got 3"):
        train(TINY, [more])
    with pytest.raises(GridMismatch, match="case-9"):
        TrainingCase(case.ct[1:], case.target, np.ones(2, np.float32), id="case-9")
    with pytest.raises(InvalidInput, match="case-9"):
        TrainingCase(case.ct, case.target, np.ones(3, np.float32), id="case-9")


def test_a_label_outside_the_map_is_refused() -> None:
    geometry = VolumeGeometry.from_array((4, 4, 4), np.diag([5.0, 5.0, 5.0, 1.0]))
    labels = np.zeros((4, 4, 4), np.uint8)
    labels[0, 0, 0] = 77
    with pytest.raises(UnknownLabel, match=r"case-9.*77"):
        prepare_case(
            np.zeros((4, 4, 4), np.int16), labels, geometry, (5.0, 5.0, 5.0), ("liver",),
            case_id="case-9",
        scheme=ABDOMEN_ATLAS,)  # fmt: skip


def test_a_loss_that_is_no_number_stops_the_run_and_keeps_its_last_checkpoint(
    tmp_path: Path,
) -> None:
    broken = TrainingCase(
        np.full_like(CASES[0].ct, np.nan), CASES[0].target, CASES[0].weight, id="case-nan"
    )
    with pytest.raises(Diverged, match=r"case-nan.*no number"):
        train(
            TINY, [*CASES, broken], run=RunOptions(tmp_path, checkpoint_every=1, accelerator="cpu")
        )
    if (tmp_path / CHECKPOINT_FILE).exists():
        state = torch.load(tmp_path / CHECKPOINT_FILE, weights_only=True)
        assert all(torch.isfinite(tensor).all() for tensor in state["network"].values())
        assert np.isfinite(state["losses"]).all()


# --- several processes ----------------------------------------------------------------------------

TWO = """
import sys
from pathlib import Path
import torch
torch.set_num_threads(1)
sys.path.insert(0, {tests!r})
from tiny_training import CASES, HELD_OUT, two_process_config
from atlas_models.training import RunOptions, train
folder = Path({folder!r})
trained = train(two_process_config(1), CASES, validation=HELD_OUT,
                run=RunOptions(folder / "run", accelerator="cpu", devices=2))
import os
torch.save((trained.weights(), trained.losses, [dict(v.dice) for v in trained.validations]),
           folder / f"rank{{os.environ['RANK']}}.pt")
"""


def test_two_processes_take_the_steps_that_one_takes_with_the_whole_batch(tmp_path: Path) -> None:
    script = tmp_path / "two.py"
    script.write_text(TWO.format(tests=TESTS, folder=str(tmp_path)))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    done = subprocess.run(
        [*command, str(script)], capture_output=True, text=True, check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    ranks = [torch.load(tmp_path / f"rank{rank}.pt", weights_only=True) for rank in (0, 1)]
    torch.set_num_threads(1)
    one = train(
        two_process_config(2), CASES, validation=HELD_OUT, run=RunOptions(accelerator="cpu")
    )
    for weights, losses, dice in ranks:
        assert losses == pytest.approx(one.losses, rel=1e-5)
        assert dice == [pytest.approx(dict(v.dice), rel=1e-4) for v in one.validations]
        for name, tensor in one.weights().items():
            assert torch.allclose(weights[name], tensor, atol=1e-6), name
    assert all(torch.equal(ranks[0][0][name], ranks[1][0][name]) for name in ranks[0][0])
    # Cases with different labels make the parts of a batch count differently: a plain mean of the
    # two losses would not do.
    halves = PatchSampler(CASES, TINY.patch, TINY.seed).draw(0, 6).weight.sum(axis=1)
    assert any(halves[i] != halves[i + 1] for i in (0, 2, 4))
