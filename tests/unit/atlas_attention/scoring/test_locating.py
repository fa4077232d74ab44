"""Locating: nothing that the coarse pass does not rule out is left out, wherever it lies."""

from concurrent.futures import Future

import numpy as np
from atlas_attention.fusion import Box
from atlas_attention.scoring.locating import Located, cheapest, locate
from atlas_core.geometry import VolumeGeometry
from atlas_core.model_spec import ModelSpec
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

SHAPE = (60, 40, 30)  # z, y, x
GRID = VolumeGeometry.from_array(SHAPE[::-1], np.diag([2.0, 2.0, 3.0, 1.0]))
BODY: Box = ((2, 60), (3, 38), (1, 29))
ORGAN_HU, OTHER_HU = 100.0, -300.0


class Ct:
    """Tissue with one cuboid of an organ, and one of a structure that nobody asked for."""

    geometry = canonical = GRID

    def __init__(self, organ: Box | None) -> None:
        self.voxels = np.zeros(SHAPE, np.float32)
        self.voxels[55:, 30:, 20:] = OTHER_HU
        if organ is not None:
            self.voxels[tuple(slice(*part) for part in organ)] = ORGAN_HU

    def read(self, start: int, stop: int) -> NDArray[np.float32]:
        return self.voxels[start:stop]


def spec(name: str = "coarse", spacing_mm: float = 4.0) -> ModelSpec:
    return ModelSpec(
        name=name, version=0, architecture="rule", organs=("other", "organ"),
        spacing_mm=(spacing_mm, spacing_mm, 6.0), patch=(8, 10, 12), hu_window=(-175.0, 250.0),
        sha256="0" * 64,
    )  # fmt: skip


def submit(_: ModelSpec, window: NDArray[np.float32]) -> Future[NDArray[np.uint8]]:
    """Sure of `other` where it is dark, hardly aware of `organ` where it lies."""
    soft = np.stack([(window < -150) * 255, (np.abs(window - ORGAN_HU) < 45) * 30])
    answer: Future[NDArray[np.uint8]] = Future()
    answer.set_result(soft.astype(np.uint8))
    return answer


def located(organ: Box | None, margin_mm: float, in_flight: int = 3) -> Located:
    return locate(
        Ct(organ), spec(), ("organ",), BODY, submit, lambda answer: answer.result(),
        margin_mm=margin_mm, windows_in_flight=in_flight,
    )  # fmt: skip


@settings(max_examples=25, deadline=None)
@given(z=st.integers(2, 40), y=st.integers(3, 20), x=st.integers(1, 10), size=st.integers(6, 9),
       margin_mm=st.sampled_from((0.0, 6.0, 500.0)))  # fmt: skip
def test_what_is_not_ruled_out_lies_inside_with_its_margin(z, y, x, size, margin_mm):
    organ: Box = ((z, z + size), (y, y + size), (x, x + size))
    found = located(organ, margin_mm)
    assert found.box is not None and found.windows > 1
    for part, (low, high), (first, last), mm in zip(
        organ, BODY, found.box, GRID.spacing_mm[::-1], strict=True
    ):
        margin = round(margin_mm / mm)
        assert low <= first < last <= high
        # A voxel of the coarse grid is two of the CT, and the border of a cuboid is half there.
        assert first <= max(low, part[0] + 2 - margin) and last >= min(high, part[1] - 2 + margin)
        assert first >= max(low, part[0] - 4 - margin) and last <= min(high, part[1] + 4 + margin)
    inside = np.prod([last - first for first, last in found.box])
    assert found.left_out == 1 - inside / np.prod([high - low for low, high in BODY])
    assert (found.left_out == 0) == (found.box == BODY)


def test_where_nothing_is_found_everything_is_looked_at():
    found = located(None, 10.0)
    assert found.box is None and found.left_out == 0 and found.windows > 0


def test_the_coarsest_member_looks_and_the_first_of_equal_ones():
    fine, coarse, other = spec("fine", 1.5), spec("coarse", 3.0), spec("other", 3.0)
    assert cheapest([fine, coarse, other]) is coarse
