"""The checkpoint of a training run: everything that the next step depends on, in one file."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from atlas_core.atomic_writes import replace_file
from atlas_core.errors import Conflict, CorruptFile, InvalidInput

from atlas_models.config import TrainingConfig
from atlas_models.exporting import unpickled
from atlas_models.training.patches import TrainingCase

CHECKPOINT_FILE = "checkpoint.pt"

_KEYS = frozenset(
    {"run", "step", "network", "optimiser", "schedule", "precision", "losses", "validations",
     "best", "finished"}
)  # fmt: skip


def run_key(
    config: TrainingConfig,
    cases: Sequence[TrainingCase],
    validation: Sequence[TrainingCase],
    *,
    processes: int,
    data_key: str,
) -> str:
    """Identifies a run by a hash: two runs with the same key take the same steps.

    Args:
        data_key: identifies what the ids of the cases do not, such as the hashes of their labels
            and of the weights that it starts from.
    """
    inputs = {
        "config": config.model_dump(mode="json"),
        "cases": [_identity(case) for case in cases],
        "validation": [_identity(case) for case in validation],
        "processes": processes,
        "data": data_key,
    }
    return hashlib.sha256(json.dumps(inputs, sort_keys=True).encode()).hexdigest()


def _identity(case: TrainingCase) -> list[object]:
    return [case.id, list(case.ct.shape), [float(weight) for weight in case.weight]]


def write_checkpoint(folder: Path, state: dict[str, Any]) -> None:
    """Replace the checkpoint of the run in `folder`, all or nothing."""
    if state.keys() != _KEYS:
        raise ValueError(f"a checkpoint holds {sorted(_KEYS)}, not {sorted(state)}")
    data = io.BytesIO()
    torch.save(state, data)
    replace_file(folder / CHECKPOINT_FILE, data.getbuffer())


def read_checkpoint(folder: Path, run: str) -> dict[str, Any] | None:
    """The checkpoint of the run in `folder`; None if there is none yet.

    Read without running any code that a manipulated file may hold (``weights_only``).

    Args:
        run: `run_key` of the run that asks.

    Raises:
        CorruptFile: the file is cut short or no checkpoint of ours.
        Conflict: it belongs to another run.
    """
    path = folder / CHECKPOINT_FILE
    if not path.is_file():
        return None
    try:
        state = unpickled(path)
    except InvalidInput as error:
        raise CorruptFile(
            "unreadable checkpoint",
            case=CHECKPOINT_FILE,
            expected="the checkpoint of a training run",
            got=f"{error.what}: {error.got}",
            remedy="delete it to train from the start",
        ) from None
    if not isinstance(state, dict) or state.keys() != _KEYS:
        raise CorruptFile(
            "the checkpoint lacks keys",
            case=CHECKPOINT_FILE,
            expected=", ".join(sorted(_KEYS)),
            got=", ".join(map(str, state)) if isinstance(state, dict) else type(state).__name__,
            remedy="delete it to train from the start",
        )
    if state["run"] != run:
        raise Conflict(
            "the folder holds a run with another configuration, other cases or more processes",
            case=f"{folder.name}/{CHECKPOINT_FILE}",
            expected=run[:12],
            got=str(state["run"])[:12],
            remedy="choose another run folder (--run-folder), or delete this checkpoint",
        )
    return state
