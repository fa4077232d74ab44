"""Training: the masked loss, cases on the model's grid, patches, configuration, determinism."""

from __future__ import annotations

from pathlib import Path

import atlas_models
import numpy as np
import pytest
import torch
from atlas_core.errors import ConfigurationError
from atlas_core.organs import ABDOMEN_ATLAS
from atlas_core.phantoms import PhantomGrid, make_phantom
from atlas_models.config import OWN_ARCHITECTURES, TrainingConfig, read_config
from atlas_models.networks import build_network
from atlas_models.training import PatchSampler, TrainedNetwork, TrainingCase, phantom_case, train
from atlas_models.training.losses import OrganLoss
from atlas_models.training.network_training import scale_hu
from atlas_models.training.patches import AIR_HU, positive_weights, prepare_case
from pydantic import ValidationError
from tiny_training import tiny_config

CONFIGS = sorted((Path(atlas_models.__file__).parent / "configs/demo").glob("*.yaml"))

TINY = tiny_config(patch=(32, 32, 32), steps=3)


@pytest.fixture(scope="module")
def case() -> TrainingCase:
    return phantom_case(make_phantom(1, grid=PhantomGrid(64, 6.0)), TINY)


def loss_with(logits: torch.Tensor, target: torch.Tensor, labelled: torch.Tensor) -> torch.Tensor:
    return OrganLoss(torch.tensor([2.0, 20.0]))(logits, target, labelled)


def test_an_organ_without_a_label_neither_costs_nor_teaches() -> None:
    logits = torch.randn(2, 2, 4, 4, 4, requires_grad=True)
    target = torch.rand(2, 2, 4, 4, 4).round()
    labelled = torch.tensor([[1.0, 0.0], [0.0, 0.0]])
    loss = loss_with(logits, target, labelled)
    loss.backward()
    assert logits.grad is not None
    assert torch.count_nonzero(logits.grad[0, 0]) > 0
    assert torch.count_nonzero(logits.grad[0, 1]) == 0
    assert torch.count_nonzero(logits.grad[1]) == 0
    changed = target.clone()
    changed[:, 1] = 1.0 - changed[:, 1]
    assert torch.equal(loss_with(logits, changed, labelled), loss)


def test_a_batch_without_any_label_costs_nothing() -> None:
    logits, target = torch.randn(1, 2, 4, 4, 4), torch.zeros(1, 2, 4, 4, 4)
    assert loss_with(logits, target, torch.zeros(1, 2)) == 0.0


def test_the_loss_is_least_for_the_truth() -> None:
    target = torch.zeros(1, 2, 8, 8, 8)
    target[:, 0, 2:5] = 1.0  # the second organ is absent
    labelled = torch.ones(1, 2)
    right = (target * 2 - 1) * 12.0
    assert loss_with(right, target, labelled) < 0.01
    for wrong in (-right, torch.zeros_like(right), right + 12.0):
        assert loss_with(wrong, target, labelled) > 0.1


def test_half_a_voxel_is_right_at_one_half() -> None:
    target = torch.full((1, 2, 4, 4, 4), 0.5)
    unweighted = OrganLoss(torch.ones(2))
    losses = [
        unweighted(torch.full_like(target, logit), target, torch.ones(1, 2)).item()
        for logit in (-2.0, 0.0, 2.0)
    ]
    assert losses[1] == min(losses)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_network_maps_a_window_to_one_logit_per_organ_and_voxel(path: Path) -> None:
    config = read_config(path)
    network = build_network(config).eval()
    x, y, z = config.patch
    with torch.no_grad():
        logits = network(torch.zeros(1, 1, z, y, x))
    assert logits.shape == (1, len(config.organs), z, y, x)
    # It starts in the belief that organs are rare.
    assert torch.sigmoid(logits).mean() < 0.3


def test_demo_configurations_share_one_grid() -> None:
    configs = [read_config(path) for path in CONFIGS]
    assert {config.architecture for config in configs} == set(OWN_ARCHITECTURES)
    assert len({(config.organs, config.spacing_mm, config.patch) for config in configs}) == 1
    assert configs[0].organs == ABDOMEN_ATLAS.names


def test_a_configuration_that_cannot_work_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValidationError, match="multiples of 2"):
        TrainingConfig(**{**TINY.model_dump(), "patch": (31, 32, 32)})
    with pytest.raises(ValidationError, match="nnunet needs 3 levels"):
        TrainingConfig(**{**TINY.model_dump(), "architecture": "nnunet"})
    with pytest.raises(ConfigurationError):
        read_config(tmp_path / "missing.yaml")
    (tmp_path / "wrong.yaml").write_text("steps: many\n")
    with pytest.raises(ConfigurationError, match=r"wrong\.yaml"):
        read_config(tmp_path / "wrong.yaml")


def test_a_case_keeps_the_volume_of_its_organs(case: TrainingCase) -> None:
    phantom = make_phantom(1, grid=PhantomGrid(64, 6.0))
    voxel_ml = phantom.geometry.canonical().resampled(TINY.spacing_mm).voxel_ml
    for channel, organ in enumerate(TINY.organs):
        volume = case.target[channel].sum() / 255.0 * voxel_ml
        assert volume == pytest.approx(phantom.volumes_ml()[organ], rel=0.03)


def test_a_case_does_not_depend_on_the_files_axis_order(case: TrainingCase) -> None:
    for codes in ("RAS", "IPL"):
        turned = phantom_case(make_phantom(1, grid=PhantomGrid(64, 6.0, codes)), TINY)
        assert np.array_equal(turned.ct, case.ct)
        assert np.array_equal(turned.target, case.target)


def test_a_case_on_its_own_grid_is_taken_as_it_is() -> None:
    phantom = make_phantom(1, grid=PhantomGrid(64, 6.0, "RAS"))
    case = prepare_case(
        phantom.ct, phantom.truth, phantom.geometry, phantom.geometry.spacing_mm,
        ("liver", "aorta"), labelled=("liver",),
    scheme=ABDOMEN_ATLAS,)  # fmt: skip
    assert np.array_equal(case.ct, phantom.ct.transpose(2, 1, 0))
    liver = phantom.truth.transpose(2, 1, 0) == ABDOMEN_ATLAS["liver"].label
    assert np.array_equal(case.target[0], liver * np.uint8(255))
    assert not case.target[1].any()
    assert case.labelled.tolist() == [True, False]


def test_rare_organs_weigh_more(case: TrainingCase) -> None:
    liver, spleen = positive_weights([case], cap=30.0)
    assert 1.0 < liver < spleen <= 30.0
    unknown = TrainingCase(case.ct, case.target, np.array([True, False]))
    assert positive_weights([unknown], cap=30.0)[1] == 1.0


def test_patches_follow_from_the_seed_and_show_every_case_in_turn(case: TrainingCase) -> None:
    marked = [
        TrainingCase(case.ct, case.target, np.array([bool(n & 1), bool(n & 2)])) for n in range(4)
    ]
    one, other = (PatchSampler(marked, TINY.patch, seed=5) for _ in range(2))
    seen = []
    for first in (0, 4):
        batch, again = one.draw(first, 4), other.draw(first, 4)
        assert batch.hu.shape == (4, 1, 32, 32, 32)
        assert batch.target.shape == (4, 2, 32, 32, 32)
        assert np.array_equal(batch.hu, again.hu)
        assert np.array_equal(batch.target, again.target)
        seen.append(sorted(map(tuple, batch.weight.tolist())))
    assert seen == [[(0.0, 0.0), (0.0, 1.0), (1.0, 0.0), (1.0, 1.0)]] * 2


def test_a_case_comes_as_often_as_its_labels_count(case: TrainingCase) -> None:
    counts = (1.0, 0.5, 0.25, 0.1)
    cases = [
        TrainingCase(case.ct, case.target, np.array([count, 0.0], np.float32)) for count in counts
    ]
    sampler = PatchSampler(cases, TINY.patch, seed=5)
    seen = [float(weight) for weight in sampler.draw(0, 370).weight[:, 0]]
    for count in counts:
        assert abs(seen.count(np.float32(count)) - 200 * count) <= 2
    # Patch n does not depend on those that were drawn before it.
    assert [float(sampler.draw(n, 1).weight[0, 0]) for n in (17, 3)] == [seen[17], seen[3]]


def test_what_was_looked_at_counts_fully_and_the_rest_as_its_label(case: TrainingCase) -> None:
    looked = np.zeros(case.target.shape, np.bool_)
    looked[0, :8] = True
    weight = np.array([0.1, 0.1], np.float32)
    part = TrainingCase(case.ct, case.target, weight, looked=looked)
    assert part.counts == 1.0
    batch = PatchSampler([part], TINY.patch, seed=5).draw(0, 3)
    assert batch.focus is not None
    counted = batch.focus * batch.weight[..., None, None, None]
    assert batch.focus.mean(axis=(2, 3, 4)) == pytest.approx(1.0, rel=1e-3)
    assert set(np.unique(np.round(counted[:, 0], 3))) <= {np.float32(0.1), np.float32(1.0)}
    assert counted[:, 1] == pytest.approx(0.1, rel=1e-3)


def test_a_loss_whose_focus_is_even_is_the_loss_without() -> None:
    torch.manual_seed(3)
    logits, target = torch.randn(2, 2, 4, 4, 4), torch.rand(2, 2, 4, 4, 4)
    loss, weight = OrganLoss(torch.tensor([2.0, 5.0])), torch.tensor([[1.0, 0.5], [0.0, 1.0]])
    plain = loss(logits, target, weight)
    assert loss(logits, target, weight, focus=torch.ones_like(target)) == pytest.approx(
        float(plain)
    )
    left = torch.zeros_like(target)
    left[..., :2] = 2.0
    other = torch.where(left > 0, logits, -logits)
    assert loss(logits, target, weight, focus=left) == pytest.approx(
        float(loss(other, target, weight, focus=left))
    )


def test_a_short_volume_floats_in_air() -> None:
    small = TrainingCase(
        np.full((4, 4, 4), 500.0, np.float32),
        np.full((1, 4, 4, 4), 255, np.uint8),
        np.array([True]),
    )
    batch = PatchSampler([small], (16, 16, 16), seed=0).draw(0, 1)
    assert batch.target.sum() == 64
    assert np.array_equal(batch.target[0, 0] > 0, batch.hu[0, 0] > (500.0 + AIR_HU) / 2)


def test_hounsfield_units_are_clipped_and_scaled() -> None:
    hu = torch.tensor([-3024.0, -175.0, 37.5, 250.0, 3000.0])
    assert scale_hu(hu, (-175.0, 250.0)).tolist() == [0.0, 0.0, 0.5, 1.0, 1.0]


def test_training_follows_from_the_seed(case: TrainingCase) -> None:
    def run(seed: int) -> TrainedNetwork:
        return train(TINY.model_copy(update={"seed": seed}), [case])

    first, again, other = run(3), run(3), run(4)
    assert first.losses == again.losses != other.losses
    weights = zip(first.network.parameters(), again.network.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in weights)


def test_training_learns_what_is_labelled(case: TrainingCase) -> None:
    config = TINY.model_copy(update={"steps": 40})
    said = []
    partly = TrainingCase(case.ct, case.target, np.array([True, False]))
    trained = train(config, [partly], on_progress=lambda progress: said.append(progress.step))
    assert said == list(range(1, 41))
    hu = np.full((32, 32, 32), AIR_HU, np.float32)
    z, y, x = (min(32, length) for length in case.ct.shape)
    hu[:z, :y, :x] = case.ct[:z, :y, :x]
    with torch.no_grad():
        scaled = scale_hu(torch.from_numpy(hu)[None, None], config.hu_window)
        soft = torch.sigmoid(trained.network(scaled))[0, :, :z, :y, :x].numpy()
    liver, truth = soft[0] > 0.5, case.target[0, :z, :y, :x] > 127
    assert 2 * (liver & truth).sum() / (liver.sum() + truth.sum()) > 0.5
    # Nothing was said about the spleen, so it stays where its bias started.
    assert soft[1].mean() < 0.3
