"""What an ensemble predicts of one CT, put together from the slabs of the pipeline."""

from __future__ import annotations

import numpy as np
import pytest
from atlas_attention.fusion import ATTENTION_SCALE
from atlas_models.evaluation.phantom_evaluation import ArraySource, predict
from rule_models import ENSEMBLE, ORGANS, RulePredictor, contextual, make_source


@pytest.mark.parametrize("axes", ["RAS", "LPS"])
def test_the_maps_hold_what_the_sizes_count(axes: str) -> None:
    given = make_source(axes=axes)
    source = ArraySource(given.voxels, given.geometry)
    predictor = RulePredictor(contextual)
    found = predict(source, ENSEMBLE, predictor, maps=True)
    bare = predict(source, ENSEMBLE, predictor)
    predictor.shutdown()

    assert tuple(found.attention) == ORGANS
    for organ in found.organs:
        volume = found.attention[organ.organ]
        assert volume.shape == found.label.shape == given.voxels.shape
        total = float(volume.sum(dtype=np.int64)) * ATTENTION_SCALE * given.geometry.voxel_ml
        assert 0 < total == pytest.approx(organ.attention_ml)
    assert found.attention_ml == pytest.approx(sum(o.attention_ml for o in found.organs))

    assert not bare.attention
    assert bare.organs == found.organs
    assert np.array_equal(bare.label, found.label)
