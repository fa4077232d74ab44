"""Soft predictions slab by slab: precise refusals, and the same result as fusing them whole."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from atlas_attention.fusion import ATTENTION_SCALE, fuse
from atlas_attention.scoring import GridSlab
from atlas_attention.server.messages import TO_READING
from atlas_attention.server.soft_stream import SoftFusion, SoftGrid, read_soft_grid
from atlas_attention.settings import AttentionSettings
from atlas_core.errors import AtlasError, InvalidInput, LimitExceeded
from atlas_core.organs import ABDOMEN_ATLAS
from atlas_core.records import Reading
from atlasloop.attention.v1 import attention_pb2 as pb

MODELS, ORGANS = 3, ("liver", "spleen")
SHAPE = (7, 6, 25)
SETTINGS = AttentionSettings()


def soft_bytes(seed: int = 0) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """``[model, organ, k, j, i]``: blobs, so that the openings of `released` leave something."""
    i, j, k = SHAPE
    random = np.random.default_rng(seed)
    coarse = random.random((MODELS, len(ORGANS), 3, 1, 1)) * 255
    return np.broadcast_to(
        np.repeat(coarse, 9, axis=2)[:, :, :k], (MODELS, len(ORGANS), k, j, i)
    ).astype(np.uint8)


def header(**changes: Any) -> pb.FuseHeader:
    grid = pb.VolumeGrid(shape=SHAPE, affine=np.diag([2.0, 2.0, 3.0, 1.0]).ravel())
    fields: dict[str, Any] = {
        "grid": grid,
        "models": MODELS,
        "organs": ORGANS,
        "voxel_type": pb.VOXEL_TYPE_UINT8,
        "reading": pb.READING_PAPER,
    }
    return pb.FuseHeader(**{**fields, **changes})


def read(**changes: Any) -> SoftGrid:
    return read_soft_grid(header(**changes), SETTINGS, ABDOMEN_ATLAS)


def slabs(
    values: np.ndarray[Any, Any], edges: list[int]
) -> Iterator[pb.FuseSoftPredictionsRequest]:
    for start, stop in pairwise(edges):
        data = np.ascontiguousarray(values[:, :, start:stop]).tobytes()
        slab = pb.SoftSlab(start=start, stop=stop, data=data)
        yield pb.FuseSoftPredictionsRequest(slab=slab)


def fused(
    fusion: SoftFusion, requests: Iterable[pb.FuseSoftPredictionsRequest]
) -> Iterator[GridSlab]:
    for request in requests:
        yield from fusion.push(request)
    yield from fusion.finish()


@pytest.mark.parametrize("reading", list(Reading))
@pytest.mark.parametrize("edges", [[0, 25], [0, 1, 2, 19, 25], list(range(26))])
def test_slabs_equal_the_whole(reading: Reading, edges: list[int]) -> None:
    grid = read(reading=TO_READING[reading])
    soft = soft_bytes()
    fusion = SoftFusion(grid, threads=1)
    pieces = list(fused(fusion, slabs(soft, edges)))
    whole = fuse(soft, reading, threads=1)

    attention = np.concatenate([piece.attention for piece in pieces], axis=3)
    assert np.array_equal(attention, whole.attention.transpose(0, 3, 2, 1))
    label = np.concatenate([piece.label for piece in pieces], axis=2)
    names = np.array([0, *grid.labels], np.uint8)
    assert np.array_equal(label, names[whole.label].transpose(2, 1, 0))
    assert [piece.start for piece in pieces[1:]] == [piece.stop for piece in pieces[:-1]]

    for channel, size in enumerate(fusion.sizes()):
        if reading is Reading.RELEASED:
            expected = np.count_nonzero(attention[channel])
        else:
            expected = attention[channel].sum(dtype=np.int64) * ATTENTION_SCALE
        assert size.attention_voxels == pytest.approx(expected)
        assert size.attention_ml == pytest.approx(expected * 0.012)
        assert size.pseudo_label_voxels == np.count_nonzero(label == size.label)


def test_floats_are_rounded_to_bytes() -> None:
    soft = soft_bytes()
    floats = SoftFusion(read(voxel_type=pb.VOXEL_TYPE_FLOAT32), threads=1)
    sent = (soft / np.float32(255)).astype("<f4")
    ours = np.concatenate([s.attention for s in fused(floats, slabs(sent, [0, 25]))], axis=3)
    assert np.array_equal(ours, fuse(soft, threads=1).attention.transpose(0, 3, 2, 1))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, -1e-6, 1.0001])
def test_an_invalid_probability_is_reported_with_its_voxel(bad: float) -> None:
    values = np.zeros((MODELS, len(ORGANS), *SHAPE[::-1]), "<f4")
    values[1, 1, 20, 3, 4] = bad
    fusion = SoftFusion(read(voxel_type=pb.VOXEL_TYPE_FLOAT32), threads=1)
    with pytest.raises(InvalidInput, match=r"model 1, spleen, voxel \(4, 3, 20\)"):
        list(fused(fusion, slabs(values, [0, 10, 25])))


@pytest.mark.parametrize(
    ("edges", "message"),
    [
        ([0, 10], "end too early.*25 slices.*got 10"),
        ([3, 25], r"out of order.*start 0.*got \[3, 25\)"),
        ([0, 10, 10, 25], r"out of order.*start 10.*got \[10, 10\)"),
    ],
)
def test_gaps_and_missing_slabs(edges: list[int], message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        list(fused(SoftFusion(read(), threads=1), slabs(soft_bytes(), edges)))


def test_overlapping_slabs() -> None:
    soft = soft_bytes()
    requests = [*slabs(soft, [0, 10]), *slabs(soft, [8, 25])]
    with pytest.raises(InvalidInput, match=r"out of order.*start 10.*got \[8, 25\)"):
        list(fused(SoftFusion(read(), threads=1), requests))


def test_a_slab_of_a_wrong_size_or_beyond_the_end() -> None:
    short = pb.FuseSoftPredictionsRequest(slab=pb.SoftSlab(start=0, stop=2, data=b"\0" * 503))
    with pytest.raises(InvalidInput, match=r"wrong size.*504 bytes.*got 503"):
        list(fused(SoftFusion(read(), threads=1), [short]))
    beyond = pb.FuseSoftPredictionsRequest(slab=pb.SoftSlab(start=0, stop=26))
    with pytest.raises(InvalidInput, match="stop up to 25"):
        list(fused(SoftFusion(read(), threads=1), [beyond]))
    with pytest.raises(InvalidInput, match="slabs after the header"):
        list(fused(SoftFusion(read(), threads=1), [pb.FuseSoftPredictionsRequest(header=header())]))


HUGE = pb.VolumeGrid(shape=(2**31, 2**31, 2**31), affine=np.eye(4).ravel())
WIDE = pb.VolumeGrid(shape=(4096, 4096, 4), affine=np.eye(4).ravel())


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"models": 0}, InvalidInput, "need models"),
        ({"models": 17}, LimitExceeded, "too many models"),
        ({"models": 4_000_000_000}, LimitExceeded, "too many models"),
        ({"organs": []}, InvalidInput, "need organs"),
        ({"organs": [f"organ_{n}" for n in range(256)]}, LimitExceeded, "too many organs"),
        ({"organs": ["liver", "liver"]}, InvalidInput, "twice"),
        ({"organs": ["liver", "../spleen"]}, InvalidInput, "malformed organ name"),
        ({"voxel_type": pb.VOXEL_TYPE_INT16}, InvalidInput, "UINT8 or FLOAT32"),
        ({"voxel_type": 99}, InvalidInput, "unknown voxel type"),
        ({"reading": 99}, InvalidInput, "unknown reading"),
        ({"grid": pb.VolumeGrid(shape=SHAPE)}, InvalidInput, "malformed grid"),
        ({"grid": HUGE}, LimitExceeded, "too large"),
        ({"grid": WIDE}, LimitExceeded, "does not fit a message"),
    ],
)
def test_headers_are_checked_before_anything_is_allocated(
    changes: dict[str, Any], error: type[AtlasError], message: str
) -> None:
    with pytest.raises(error, match=message):
        read(**changes)


def test_label_values() -> None:
    def labels(organs: list[str], given: list[int]) -> tuple[int, ...]:
        grid = pb.VolumeGrid(shape=SHAPE, affine=np.eye(4).ravel(), labels=given)
        return read(grid=grid, organs=organs).labels

    assert labels(["liver", "spleen"], []) == (5, 8)
    assert labels(["liver", "uterus"], []) == (1, 2)
    assert labels(["liver", "uterus"], [200, 7]) == (200, 7)
    for wrong in ([1], [3, 3], [0, 1], [1, 256]):
        with pytest.raises(InvalidInput, match="label"):
            labels(["liver", "spleen"], wrong)
