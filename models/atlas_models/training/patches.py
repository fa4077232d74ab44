"""Training cases on the model's grid, and random patches of them. Free of torch."""

from __future__ import annotations

import bisect
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from atlas_core.errors import GridMismatch, InvalidInput, UnknownLabel
from atlas_core.geometry import Float3, Shape3, VolumeGeometry
from atlas_core.imaging import distinct_values
from atlas_core.imaging.resampling import resample_image
from atlas_core.model_spec import Padding
from atlas_core.organs import BACKGROUND, OrganScheme
from atlas_core.phantoms import PHANTOM_ORGANS, Phantom
from numpy.typing import NDArray

from atlas_models.config import TrainingConfig

AIR_HU = -1024.0
"""Beyond the volume is air, for training as for serving."""

Augment = Callable[
    [NDArray[np.float32], NDArray[np.float32], np.random.Generator],
    tuple[NDArray[np.float32], NDArray[np.float32]],
]
"""HU ``[z, y, x]`` and target ``[organ, z, y, x]`` of a patch, changed at random."""


@dataclass(frozen=True)
class TrainingCase:
    """One case on the model's grid.

    Attributes:
        ct: Hounsfield units, float32 ``[z, y, x]``.
        target: share of each voxel that each organ fills, 255 = all, uint8 ``[organ, z, y, x]``.
        weight: how much the label of each organ counts, ``[organ]``; 0: the case has none.
        looked: where somebody looked at the label, bool like `target`: there it counts fully,
            elsewhere as `weight` says. None: nobody looked at parts.
        id: for messages and for the split into training and validation.

    Raises:
        InvalidInput, GridMismatch: parts that do not fit together.
    """

    ct: NDArray[np.float32]
    target: NDArray[np.uint8]
    weight: NDArray[np.float32] | NDArray[np.bool_]
    looked: NDArray[np.bool_] | None = field(default=None, kw_only=True)
    id: str = field(default="", kw_only=True)

    def __post_init__(self) -> None:
        if self.target.ndim != 4 or self.target.shape[1:] != self.ct.shape:
            raise GridMismatch(
                "target and CT have different grids",
                case=self.id or None,
                expected=("organ", *self.ct.shape),
                got=self.target.shape,
            )
        if self.weight.shape != self.target.shape[:1]:
            raise InvalidInput(
                "every organ of the target needs one weight",
                case=self.id or None,
                expected=self.target.shape[:1],
                got=self.weight.shape,
            )
        if self.looked is not None and self.looked.shape != self.target.shape:
            raise GridMismatch(
                "what was looked at and target have different grids",
                case=self.id or None,
                expected=self.target.shape,
                got=self.looked.shape,
            )

    @property
    def counts(self) -> float:
        """How much the best of its labels counts, or of their parts."""
        seen = self.looked is not None and self.looked.any()
        return 1.0 if seen else float(np.max(self.weight, initial=0.0))

    @property
    def labelled(self) -> NDArray[np.bool_]:
        """Which organs the case has labels for, ``[organ]``."""
        return np.asarray(self.weight, dtype=np.float32) > 0


def prepare_case(
    ct: NDArray[np.int16] | NDArray[np.float32],
    label_map: NDArray[np.uint8],
    geometry: VolumeGeometry,
    spacing_mm: Float3,
    organs: Sequence[str],
    *,
    labelled: Iterable[str] | None = None,
    scheme: OrganScheme,
    case_id: str = "",
) -> TrainingCase:
    """A case on the model's grid out of one label map.

    Args:
        ct, label_map: ``[i, j, k]`` in the file's axis order, on `geometry`.
        organs: channels of the target, in order.
        labelled: organs whose label the case has; by default all.

    Raises:
        GridMismatch: CT or label map have another shape than `geometry`.
        UnknownLabel: a value or an organ that is not in the scheme.
    """
    allowed = {BACKGROUND, *scheme.labels}
    unknown = sorted(set(distinct_values(label_map)) - allowed)
    if unknown:
        raise UnknownLabel(
            "the label map has values outside the scheme",
            case=case_id or None,
            expected=sorted(allowed),
            got=unknown,
        )
    known = set(organs if labelled is None else labelled)
    masks = {organ: label_map == scheme[organ].label for organ in organs if organ in known}
    weights = dict.fromkeys(masks, 1.0)
    return case_of_masks(ct, masks, geometry, spacing_mm, organs, weights=weights, case_id=case_id)


def case_of_masks(
    ct: NDArray[Any],
    masks: Mapping[str, NDArray[Any]],
    geometry: VolumeGeometry,
    spacing_mm: Float3,
    organs: Sequence[str],
    *,
    weights: Mapping[str, float],
    case_id: str = "",
) -> TrainingCase:
    """A case on the model's grid out of one mask per labelled organ, resampled as serving does it.

    Masks are resampled like images: the share of a voxel that an organ fills teaches the network
    borders finer than its grid, which interpolation brings back on the CT's own grid.

    Args:
        ct: ``[i, j, k]`` in the file's axis order, on `geometry`.
        masks: organ → ``[i, j, k]``, non-zero where it is; an organ without a mask has no label.
        organs: channels of the target, in order.
        weights: organ → how much its label counts.

    Raises:
        GridMismatch: CT or a mask have another shape than `geometry`.
    """
    for what, voxels in {"CT": ct, **{f"mask of {organ}": m for organ, m in masks.items()}}.items():
        if voxels.shape != geometry.shape:
            raise GridMismatch(
                f"the {what} does not lie on the grid of its case",
                case=case_id or None,
                expected=geometry.shape,
                got=voxels.shape,
            )
    grid = geometry.canonical().resampled(spacing_mm)
    target = np.zeros((len(organs), *grid.shape[::-1]), dtype=np.uint8)
    for channel, organ in enumerate(organs):
        mask = masks.get(organ)
        if mask is not None and mask.any():
            share = resample_image((mask != 0).astype(np.float32), geometry, grid)
            target[channel] = np.rint(share * 255.0).transpose(2, 1, 0)
    hu = np.ascontiguousarray(resample_image(ct, geometry, grid).transpose(2, 1, 0))
    weight = np.array([weights[o] if o in masks else 0.0 for o in organs], dtype=np.float32)
    return TrainingCase(hu, target, weight, id=case_id)


def phantom_case(phantom: Phantom, config: TrainingConfig) -> TrainingCase:
    """A fully labelled training case out of a phantom."""
    return prepare_case(
        phantom.ct,
        phantom.truth,
        phantom.geometry,
        config.spacing_mm,
        config.organs,
        scheme=PHANTOM_ORGANS,
    )


def positive_weights(cases: Sequence[TrainingCase], cap: float) -> NDArray[np.float32]:
    """How much more an organ's voxels count than the background's, ``[organ]``.

    The square root of their rarity, at most `cap`: it balances the liver against the gall bladder
    without drowning the latter in false alarms.
    """
    shares = []
    for channel in range(cases[0].target.shape[0]):
        filled = [case.target[channel].mean() / 255.0 for case in cases if case.labelled[channel]]
        shares.append(max(float(np.mean(filled)) if filled else 1.0, 1e-6))
    return np.clip(1.0 / np.sqrt(np.array(shares)), 1.0, cap).astype(np.float32)


def intensity_augmented(
    hu: NDArray[np.float32], target: NDArray[np.float32], rng: np.random.Generator
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Other scanners and contrast: gain about the mean of soft tissue, offset, noise."""
    gain, offset = rng.uniform(0.85, 1.15), rng.uniform(-15.0, 15.0)
    noise = rng.uniform(0.0, 14.0)
    grain = rng.standard_normal(hu.shape, dtype=np.float32) * np.float32(noise)
    pivot = np.float32(40.0)
    changed = (hu - pivot) * np.float32(gain) + pivot + np.float32(offset) + grain
    return np.asarray(changed, dtype=np.float32), target


@dataclass(frozen=True)
class Batch:
    """A batch of patches.

    Attributes:
        hu: float32 ``[batch, 1, z, y, x]``.
        target: 0..1, float32 ``[batch, organ, z, y, x]``.
        weight: of each organ's label, float32 ``[batch, organ]``; the mean over the patch.
        case_ids: where each patch comes from.
        focus: of every voxel against that mean, float32 like `target`; None: all are equal.
    """

    hu: NDArray[np.float32]
    target: NDArray[np.float32]
    weight: NDArray[np.float32]
    case_ids: tuple[str, ...]
    focus: NDArray[np.float32] | None = None


class PatchSampler:
    """Random augmented patches of training cases.

    Patch number n follows from the seed and n alone, so that a run that is resumed at any step, or
    shared by several processes, sees the patches of an uninterrupted one.

    A case comes as often as its labels count: one whose best label has half the weight of the best
    of all is shown in every second turn. The loss, a mean over the labels of a batch, would not
    tell a batch of pseudo labels from one that people drew.

    Args:
        patch: window along x, y, z.
        augment: changes every patch.
        foreground_share: of the patches, those that hold a voxel of some organ for certain.
        short_share: of the patches, those of which a run of slices is kept, as where a scan is
            shorter than the window.
        padding_hu: beyond the volume or the run; None: air.

    Raises:
        InvalidInput: there are no cases.
    """

    def __init__(
        self,
        cases: Sequence[TrainingCase],
        patch: Shape3,
        seed: int,
        *,
        augment: Augment = intensity_augmented,
        foreground_share: float = 0.0,
        short_share: float = 0.0,
        padding_hu: Padding | None = None,
    ) -> None:
        if not cases:
            raise InvalidInput("no case to train on", expected="at least one")
        self._cases = tuple(cases)
        self._patch = (patch[2], patch[1], patch[0])
        self._seed = seed
        self._augment = augment
        self._foreground_share = foreground_share
        best = np.array([case.counts for case in cases])
        # A case without any label comes as before: it costs nothing, and teaches nothing.
        best[best == 0.0] = best.max()
        self._share = best / best.max() if best.max() else np.ones(len(best))
        self._phase = np.where(self._share < 1.0, self._rng(_TURN, 0).random(len(best)), 0.0)
        self._short_share = short_share
        self._padding_hu: Padding = AIR_HU if padding_hu is None else padding_hu

    def draw(self, first: int, count: int) -> Batch:
        """Patches ``first … first + count - 1``."""
        drawn = [self._number(number) for number in range(first, first + count)]
        weights = np.stack([case.weight for case, _, _ in drawn]).astype(np.float32)
        organs = weights.shape[1]
        focus = None
        if any(case.looked is not None for case, _, _ in drawn):
            nowhere = np.zeros((organs, *self._patch), np.float32)
            focus = np.stack(
                [
                    _focus(case, nowhere if case.looked is None else part[organs:])
                    for case, _, part in drawn
                ]
            )
            weights = focus.mean(axis=(2, 3, 4))
            mean = weights[..., None, None, None]
            focus = np.divide(focus, mean, out=np.ones_like(focus), where=mean > 0)
        return Batch(
            np.stack([hu for _, hu, _ in drawn])[:, None],
            np.stack([part[:organs] for _, _, part in drawn]),
            weights,
            tuple(case.id for case, _, _ in drawn),
            focus,
        )

    def _number(self, number: int) -> tuple[TrainingCase, NDArray[np.float32], NDArray[np.float32]]:
        """Every case of a turn once, in random order, before any comes again."""
        turn = bisect.bisect_right(range(number + 2), number, key=self._before) - 1
        shown = np.flatnonzero(self._times(turn + 1) > self._times(turn))
        order = self._rng(_ORDER, turn).permutation(len(shown))
        case = self._cases[shown[order[number - self._before(turn)]]]
        rng = self._rng(_PATCH, number)
        return case, *self._augment(*self._patch_of(case, rng), rng)

    def _times(self, turns: int) -> NDArray[np.int64]:
        """How often each case was shown in the first `turns`, ``[case]``."""
        return np.floor(turns * self._share + self._phase).astype(np.int64)

    def _before(self, turn: int) -> int:
        """How many patches come before `turn`."""
        return int(self._times(turn).sum())

    def _rng(self, purpose: int, number: int) -> np.random.Generator:
        return np.random.Generator(np.random.PCG64((self._seed, purpose, number)))

    def _patch_of(
        self, case: TrainingCase, rng: np.random.Generator
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        # What was looked at goes along with the target wherever a patch is turned to.
        looked = np.zeros((0, *case.ct.shape), np.bool_) if case.looked is None else case.looked
        source, beyond = [], []
        starts = self._starts(case, rng)
        for start, length, window in zip(starts, case.ct.shape, self._patch, strict=True):
            low, high = max(0, start), min(length, start + window)
            source.append(slice(low, high))
            beyond.append((low - start, start + window - high))
        hu = self._padded(case.ct[tuple(source)], beyond, self._padding_hu)
        box = (slice(None), *source)
        taught = np.concatenate([case.target[box], looked[box] * np.uint8(255)])
        target = self._padded(taught, [(0, 0), *beyond], 0)
        if self._short_share and rng.random() < self._short_share:
            run = _run(self._patch[0], rng)
            before_after = (run.start, self._patch[0] - run.stop)
            hu = self._padded(hu[run], [before_after, (0, 0), (0, 0)], self._padding_hu)
            target = self._padded(target[:, run], [(0, 0), before_after, (0, 0), (0, 0)], 0)
        return hu.astype(np.float32), target.astype(np.float32) / np.float32(255.0)

    def _padded(
        self, voxels: NDArray[Any], beyond: Sequence[tuple[int, int]], value: Padding
    ) -> NDArray[Any]:
        """`voxels` and what lies beyond them: `value`, or their own at the edge."""
        if self._padding_hu == "edge":
            return np.pad(voxels, beyond, mode="edge")
        return np.pad(voxels, beyond, constant_values=value)

    def _starts(self, case: TrainingCase, rng: np.random.Generator) -> list[int]:
        """First voxel of a patch along z, y, x."""
        # The draw is made only where it decides something: it would shift all that follow.
        if self._foreground_share and rng.random() < self._foreground_share:
            voxel = _voxel_of_an_organ(case, rng)
            if voxel is not None:
                return [
                    _start_about(at, length, window, rng)
                    for at, length, window in zip(voxel, case.ct.shape, self._patch, strict=True)
                ]
        return [
            _start(length, window, rng)
            for length, window in zip(case.ct.shape, self._patch, strict=True)
        ]


_ORDER, _PATCH, _TURN = 0, 1, 2  # streams of random numbers that never meet


def _focus(case: TrainingCase, looked: NDArray[np.float32]) -> NDArray[np.float32]:
    """Weight of every voxel of a patch, ``[organ, z, y, x]``.

    Args:
        looked: the part of each voxel that somebody looked at.
    """
    weight = np.asarray(case.weight, np.float32)[:, None, None, None]
    return np.asarray(weight + (1.0 - weight) * looked, np.float32)


def _start(length: int, window: int, rng: np.random.Generator) -> int:
    """First voxel of a patch along one axis. A short volume floats in air; a long one is cut
    anywhere, its ends as often as a sliding window sees them."""
    spare = length - window
    if spare <= 0:
        return int(rng.integers(spare, 1))
    return int(np.clip(rng.integers(-4, spare + 5), 0, spare))


def _start_about(voxel: int, length: int, window: int, rng: np.random.Generator) -> int:
    """First voxel of a patch that holds `voxel` somewhere."""
    spare = length - window
    if spare <= 0:
        return int(rng.integers(spare, 1))
    return int(np.clip(voxel - rng.integers(0, window), 0, spare))


def _run(slices: int, rng: np.random.Generator) -> slice:
    """A run of at most half the slices."""
    shortest = min(SHORTEST_RUN, slices)
    length = int(rng.integers(shortest, max(shortest, slices // 2) + 1))
    first = int(rng.integers(0, slices - length + 1))
    return slice(first, first + length)


def _voxel_of_an_organ(case: TrainingCase, rng: np.random.Generator) -> tuple[int, int, int] | None:
    """A voxel (z, y, x) of a labelled organ, small organs as often as large ones; None: tried an
    organ that is absent."""
    channel = int(rng.choice(np.flatnonzero(case.labelled))) if case.labelled.any() else None
    if channel is None:
        return None
    target = case.target[channel]
    slices = np.flatnonzero(target.max(axis=(1, 2)) > HALF)
    if not slices.size:
        return None
    z = int(rng.choice(slices))
    y, x = np.nonzero(target[z] > HALF)
    chosen = int(rng.integers(len(y)))
    return z, int(y[chosen]), int(x[chosen])


SHORTEST_RUN = 6
"""Slices of the model's grid: 24 mm of the demo models' 4 mm."""

HALF = 127
"""A voxel of a target above this belongs to the organ more than not."""
