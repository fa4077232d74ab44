"""Which models answer: the version in service, never one that is only being tried."""

from __future__ import annotations

import pytest
from atlas_attention.triton.ensemble import choose
from atlas_core.errors import NotFound
from atlas_core.model_spec import ModelSpec


def spec(name: str, version: int) -> ModelSpec:
    return ModelSpec(
        name=name, version=version, architecture="unet", organs=("liver",),
        spacing_mm=(1.5, 1.5, 1.5), patch=(8, 8, 8), hu_window=(-175.0, 250.0), sha256="a" * 64,
    )  # fmt: skip


SERVED = [spec("nnunet", 0), spec("unet", 0), spec("unet", 1), spec("unet", 2)]


def refs(chosen: tuple[ModelSpec, ...]) -> list[str]:
    return [f"{one.name}@{one.version}" for one in chosen]


def test_without_a_word_the_newest_answers() -> None:
    assert refs(choose(SERVED, [])) == ["nnunet@0", "unet@2"]
    assert refs(choose(SERVED, ["unet"])) == ["unet@2"]


def test_the_version_in_service_answers_although_a_newer_one_is_loaded() -> None:
    in_service: dict[str, int | None] = {"unet": 1, "nnunet": 0}
    assert refs(choose(SERVED, [], in_service)) == ["nnunet@0", "unet@1"]
    assert refs(choose(SERVED, ["unet"], in_service)) == ["unet@1"]
    # By number any loaded version answers: that is how a new one is tried.
    assert refs(choose(SERVED, ["unet@2"], in_service)) == ["unet@2"]


def test_a_model_of_which_no_version_is_in_service_is_left_out() -> None:
    assert refs(choose(SERVED, [], {"unet": None})) == ["nnunet@0"]
    with pytest.raises(NotFound, match="unet is not in service"):
        choose(SERVED, ["unet"], {"unet": None})


def test_a_version_in_service_that_is_not_ready_is_not_replaced_by_another() -> None:
    assert refs(choose(SERVED, [], {"unet": 7})) == ["nnunet@0"]
