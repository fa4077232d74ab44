"""Who of an ensemble is blended with whom, who judges which organ, and where they meet.

Members of one grid, patch, overlap, resampling and place of windows share their windows: a *group*.
Members of a group that know the same organs share the memory in which windows are blended: a *part*
of it. What the parts say is brought to one *fusion grid* and fused by panels (`fusion.voices`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from atlas_core.errors import InvalidInput, LimitExceeded
from atlas_core.geometry import Float3, VolumeGeometry
from atlas_core.imaging.spline_weights import thick_axis
from atlas_core.model_spec import ModelSpec, Padding, Windows, ensemble_organs, parse_ensemble
from atlas_core.organs import OrganScheme

from atlas_attention.fusion import AIR_HU, MAX_MODELS, MAX_ORGANS, Panel, Zyx, panels

_Shared = tuple[Float3, Zyx, float, Windows, tuple[float, float] | None, Padding]


@dataclass(frozen=True)
class Part:
    """Members of a group that know the same organs.

    Attributes:
        members: indices of the members, rising.
        organs: channels of the ensemble, rising.
        answered: of each member, which channels of its answers these are; None: all, in order.
    """

    members: tuple[int, ...]
    organs: tuple[int, ...]
    answered: tuple[tuple[int, ...] | None, ...]


@dataclass(frozen=True)
class Group:
    """Members that share windows.

    Attributes:
        spacing_mm: of their grid, along x, y, z.
        patch: voxels of a window (z, y, x).
        overlap: of neighbouring windows, as a share of the patch.
        windows: where they lie.
        clip_hu: of the CT before nnU-Net's resampling, which clips first; None: the CT is
            resampled linearly, and only the graph clips.
        padding_hu: beyond a CT that is smaller than a window.
        parts: the members, by the organs that they know.
    """

    spacing_mm: Float3
    patch: Zyx
    overlap: float
    windows: Windows
    clip_hu: tuple[float, float] | None
    padding_hu: Padding
    parts: tuple[Part, ...]

    @property
    def members(self) -> tuple[int, ...]:
        """Indices of all members, rising."""
        return tuple(sorted(member for part in self.parts for member in part.members))

    def copied_axis(self, ct: VolumeGeometry) -> int | None:
        """Along which axis of z, y, x nnU-Net copies the nearest slice of its predictions, where it
        brings them back to `ct`; None: along none, or the members are not served as nnU-Net."""
        if self.clip_hu is None:
            return None
        (x, y, z), (ct_x, ct_y, ct_z) = self.spacing_mm, ct.spacing_mm
        return thick_axis((z, y, x), (ct_z, ct_y, ct_x))

    def meeting_spacing_mm(self, ct: VolumeGeometry) -> Float3:
        """Of the grid where their predictions lose nothing, along x, y, z: their own, but the CT's
        where slices are copied, as their edges stand between the slices of their own."""
        x, y, z = (
            ct.spacing_mm[axis] if 2 - axis == self.copied_axis(ct) else mm
            for axis, mm in enumerate(self.spacing_mm)
        )
        return x, y, z


@dataclass(frozen=True)
class FusionPlan:
    """How the members of an ensemble come together.

    Attributes:
        specs: the members.
        organs: channels of the ensemble; see `model_spec.ensemble_organs`.
        groups: members that share windows.
        panels: organs that the same members know.
    """

    specs: tuple[ModelSpec, ...]
    organs: tuple[str, ...]
    groups: tuple[Group, ...]
    panels: tuple[Panel, ...]

    def fusion_grid(
        self, ct: VolumeGeometry, fusion_spacing_mm: Float3 | None = None
    ) -> VolumeGeometry:
        """The grid where the members meet.

        Of members with one spacing it is their own grid. Else it has along each axis the finest
        spacing of the members', or the one that is asked for, but none finer than the CT's: there
        is nothing to see, and every voxel costs. See `Group.meeting_spacing_mm`.

        Args:
            ct: the CT's grid, its axes turned to RAS+.
            fusion_spacing_mm: along x, y, z; None: the members decide.
        """
        spacings = {group.meeting_spacing_mm(ct) for group in self.groups}
        if fusion_spacing_mm is None and len(spacings) == 1:
            return ct.resampled(spacings.pop())
        finest = fusion_spacing_mm or tuple(min(axis) for axis in zip(*spacings, strict=True))
        x, y, z = (max(mm, own) for mm, own in zip(finest, ct.spacing_mm, strict=True))
        return ct.resampled((x, y, z))

    def is_alone_on(self, fusion_grid: VolumeGeometry, ct: VolumeGeometry) -> bool:
        """Whether all members are blended together on the very fusion grid: what is blended can be
        fused where it lies."""
        first = self.groups[0]
        one = len(self.groups) == len(first.parts) == 1
        return one and ct.resampled(first.spacing_mm).shape == fusion_grid.shape


def fusion_plan(specs: Sequence[ModelSpec], scheme: OrganScheme, overlap: float) -> FusionPlan:
    """How `specs` come together under `scheme`; channels that the scheme lacks take no part.

    Args:
        overlap: of neighbouring windows, where a model does not say otherwise.

    Raises:
        InvalidInput: no model, two of one name, or one without any organ of the scheme.
        LimitExceeded: more than `MAX_MODELS` models or `MAX_ORGANS` organs.
    """
    if not specs:
        raise InvalidInput("an ensemble needs at least one model")
    parse_ensemble([spec.name for spec in specs])
    organs = ensemble_organs(specs, scheme)
    for what, count, most in (
        ("models", len(specs), MAX_MODELS),
        ("organs", len(organs), MAX_ORGANS),
    ):
        if count > most:
            raise LimitExceeded(f"too many {what} to fuse", expected=f"at most {most}", got=count)
    known = [
        {channel for channel, organ in enumerate(organs) if organ in spec.organs} for spec in specs
    ]
    for spec, its in zip(specs, known, strict=True):
        if not its:
            raise InvalidInput(
                f"model {spec.name} knows no organ of the scheme",
                expected=f"some of {', '.join(scheme.names)}",
                got=", ".join(spec.organs),
                remedy="take it out of the ensemble, or score with the scheme of its organs",
            )
    return FusionPlan(tuple(specs), organs, _groups(specs, organs, known, overlap), panels(known))


def _groups(
    specs: Sequence[ModelSpec],
    organs: tuple[str, ...],
    known: list[set[int]],
    overlap: float,
) -> tuple[Group, ...]:
    grids: dict[_Shared, dict[tuple[int, ...], list[int]]] = {}
    for member, spec in enumerate(specs):
        x, y, z = spec.patch
        own = overlap if spec.overlap is None else spec.overlap
        clip_hu = spec.hu_window if spec.resampling == "nnunet" else None
        padding_hu: Padding = AIR_HU if spec.padding_hu is None else spec.padding_hu
        shared = (spec.spacing_mm, (z, y, x), own, spec.windows, clip_hu, padding_hu)
        parts = grids.setdefault(shared, {})
        parts.setdefault(tuple(sorted(known[member])), []).append(member)
    return tuple(
        Group(
            *grid,
            parts=tuple(
                Part(
                    tuple(members),
                    channels,
                    tuple(_answered(specs[m], [organs[c] for c in channels]) for m in members),
                )
                for channels, members in parts.items()
            ),
        )
        for grid, parts in grids.items()
    )


def _answered(spec: ModelSpec, organs: list[str]) -> tuple[int, ...] | None:
    """Which channels of the model's answers are `organs`; None: all, in order."""
    channels = tuple(spec.organs.index(organ) for organ in organs)
    return None if channels == tuple(range(len(spec.organs))) else channels
