"""Laws of the loop's study, and a whole one of a hand's size; see `benchmarks/loop_study.py`."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from atlas_core.phantoms import Kind
from atlas_core.records import RankedCase

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))
from loop_study import against, aubc, draw, study, summary
from study.annotator import Revised, assembled, attended_regions, revise_case, revise_region
from study.cases import LABELS, StudyCase, mean_dice
from study.loop import Arm, StudyPlan
from study.models import Scored

TINY = StudyPlan(
    spacing_mm=(20.0, 20.0, 20.0),
    patch=(16, 16, 16),
    networks={name: {"name": name, "channels": [4, 8], "seed": n} for n, name in enumerate("ab")},
    taught=2,
    pool=3,
    hidden=(Kind.CHILD,),
    held_out=1,
    held_out_hidden=(Kind.CHILD,),
    first_steps=2,
    steps=1,
    revisions=1,
    iterations=2,
    columns=24,
)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Networks of this size wait longer for a second thread than they gain by it."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def case_of(seed: int) -> tuple[StudyCase, Scored]:
    """Boxes of organs, and a prediction that has them in other places."""
    rng = np.random.default_rng(seed)
    truth, label = np.zeros((2, 14, 12, 10), np.uint8)
    for volume in (truth, label):
        for value in LABELS.values():
            i, j, k = rng.integers(0, 8, 3)
            volume[i : i + 4, j : j + 4, k : k + 3] = value
    attention = {o: np.where(label == v, 136, 0).astype(np.uint8) for o, v in LABELS.items()}
    ranked = RankedCase(
        rank=1, case_id="case_0123456789ab", dataset="pool", attention_voxels=0, attention_ml=0,
        relative_attention=0, organs=(),
    )  # fmt: skip
    ct = np.zeros(truth.shape, np.float32)
    case = StudyCase("case_0123456789ab", Kind.ORDINARY, ct, truth, (9.0, 9.0, 9.0))
    return case, Scored(label, attention, ranked)


@pytest.mark.parametrize("seed", range(5))
def test_a_revised_case_is_right_and_never_worse(seed: int) -> None:
    case, scored = case_of(seed)
    before = assembled(case, scored.label, Revised())
    assert np.array_equal(before, scored.label)
    made, minutes = revise_case(case, before, Revised())
    after = assembled(case, scored.label, made)
    assert minutes > 0
    assert mean_dice(after, case.truth) >= mean_dice(before, case.truth)
    wrong = [organ for organ, value in LABELS.items() if organ in made.masks]
    for organ in wrong:
        assert np.array_equal(after == LABELS[organ], case.truth == LABELS[organ])


def test_regions_are_right_where_somebody_looked_and_pseudo_elsewhere() -> None:
    case, scored = case_of(1)
    made = Revised()
    for organ, where in attended_regions(scored)[:3]:
        made, _ = revise_region(case, assembled(case, scored.label, made), organ, where, made)
    other = np.roll(scored.label, 2, axis=0)  # what later models say
    for organ, looked in made.looked.items():
        mask = made.masks[organ]
        assert np.array_equal(mask[looked], (case.truth == LABELS[organ])[looked])
        assert np.array_equal(mask[~looked], (scored.label == LABELS[organ])[~looked])
        # Nobody looked at the rest, so it goes on with the models.
        after = assembled(case, other, made) == LABELS[organ]
        free = ~looked & (assembled(case, other, Revised(made.masks, {})) == 0)
        assert not (after & free & (other != LABELS[organ])).any()
    training = case.training_case(case.truth, dict.fromkeys(LABELS, 0.1), made.looked)
    assert training.looked is not None
    assert training.counts == 1.0


def test_the_area_under_a_flat_curve_is_its_height() -> None:
    assert aubc([0.4, 0.4, 0.4]) == pytest.approx(0.4)
    same = against({0: 0.5, 1: 0.6}, {0: 0.5, 1: 0.6})
    assert same == {"difference": 0.0}
    assert against({0: 0.5, 1: 0.6}, {0: 0.4, 1: 0.3})["difference"] == pytest.approx(0.2)


def test_a_study_is_done_once_and_goes_on_where_it_was_stopped(tmp_path: Path) -> None:
    folder = tmp_path / "study"
    arms = (Arm.RANDOM, Arm.REGIONS, Arm.RANDOM_FOREGROUND, Arm.PSEUDO_ONLY)
    runs = study(TINY, range(1), arms, folder)
    # Arms of regions take the minutes of the list by disagreement, which so runs, too.
    assert set(runs) == {arm.value for arm in arms} | {Arm.DISAGREEMENT.value}
    first = {arm: by_seed[0][0] for arm, by_seed in runs.items()}
    assert all(line == first["random"] for line in first.values())
    assert [len(line["cases"]) for line in runs["disagreement"][0][1:]] == [1, 1]
    assert not runs["pseudo_only"][0][-1]["cases"]
    for file in sorted(folder.rglob("1.json"))[:2]:
        file.unlink()  # as if it had been stopped there
    assert study(TINY, range(1), arms, folder) == runs
    row = summary(runs)["disagreement"]
    assert row["seeds"] == 1
    draw(runs, tmp_path / "study.png")
    assert (tmp_path / "study.png").stat().st_size > 0
    assert replace(TINY, steps=2).key != TINY.key
