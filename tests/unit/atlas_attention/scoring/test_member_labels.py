"""The label map of each member is what it would give alone."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from atlas_attention.scoring.pipeline import MemberSlab
from atlas_core.model_spec import ModelSpec
from atlas_core.organs import ABDOMEN_ATLAS
from atlas_core.records import Reading
from numpy.typing import NDArray
from rule_models import ENSEMBLE, ArraySource, RulePredictor, contextual, make_source, run, spec

MIXED = (
    spec("swin", organs=("aorta", "liver", "spleen")),
    spec("unet", organs=("liver", "spleen")),
    spec("nnunet", patch=(12, 20, 8), spacing_mm=(1.6, 1.6, 5.0), organs=("aorta", "liver")),
)
"""Two of one grid that know different organs, and one of a grid of its own; the organs stand in the
order of the scheme, which settles ties."""


def members_of(
    source: ArraySource, specs: Sequence[ModelSpec], **options: object
) -> dict[int, NDArray[np.uint8]]:
    """The map of each member, put together from its slabs, which cover the grid once."""
    slabs: list[MemberSlab] = []
    run(source, RulePredictor(contextual), specs, on_member=slabs.append, **options)
    maps = {n: np.full(source.geometry.shape, 255, np.uint8) for n in range(len(specs))}
    for slab in slabs:
        within = [slice(None)] * 3
        within[slab.axis] = slice(slab.start, slab.stop)
        assert (maps[slab.member][tuple(within)] == 255).all()
        maps[slab.member][tuple(within)] = slab.label
    return maps


@pytest.mark.parametrize("reading", list(Reading))
@pytest.mark.parametrize("specs", [ENSEMBLE, MIXED], ids=["one grid", "mixed"])
def test_a_member_labels_what_it_would_alone(
    specs: tuple[ModelSpec, ...], reading: Reading
) -> None:
    source = make_source((33, 29, 37), axes="PIR")
    together = run(source, RulePredictor(contextual), specs, reading=reading)
    spacing = together.summary.fusion_spacing_mm
    maps = members_of(source, specs, reading=reading, slab_slices=5)
    assert len({labels.tobytes() for labels in maps.values()}) == len(specs)  # they do differ
    for one, labels in zip(specs, maps.values(), strict=True):
        alone = run(
            source, RulePredictor(contextual), (one,), reading=reading, fusion_spacing_mm=spacing
        )
        assert labels.any()
        assert np.array_equal(labels, alone.label)


def test_asking_for_members_changes_nothing_else() -> None:
    source = make_source((33, 29, 37))
    without = run(source, RulePredictor(contextual), MIXED, scheme=ABDOMEN_ATLAS)
    told: list[MemberSlab] = []
    asked = run(
        source, RulePredictor(contextual), MIXED, scheme=ABDOMEN_ATLAS, on_member=told.append
    )
    assert told
    assert np.array_equal(asked.label, without.label)
    assert np.array_equal(asked.attention, without.attention)
    assert asked.summary.organs == without.summary.organs
