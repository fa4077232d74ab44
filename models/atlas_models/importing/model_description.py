"""What a user must say about a model from elsewhere: one YAML file, checked first.

Weights and graphs do not say which channel is the liver, how their volumes were oriented, or how
their intensities were scaled.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Self, TypeVar

import yaml
from atlas_core.errors import ConfigurationError, InvalidInput
from atlas_core.frozen_model import FrozenModel, first_fault
from atlas_core.geometry import Float3, Shape3
from atlas_core.importing import open_lesions, require_answers
from atlas_core.model_spec import ModelSpec
from atlas_core.organs import OrganScheme
from pydantic import Field, ValidationError, model_validator

from atlas_models.exporting import NO_SHA256
from atlas_models.importing.imported_model import NO_ORGAN
from atlas_models.importing.organ_synonyms import organ_called

Axes = Literal["xyz", "zyx"]


class ModelDescription(FrozenModel):
    """What descriptions of weights and of graphs have in common."""

    classes: tuple[str | None, ...] = Field(
        min_length=1,
        description="Output channels in order: an organ, or anything else that is left out "
        "(background, duodenum, null). A name may occur twice: channels are joined.",
    )
    activation: Literal["sigmoid", "softmax", "none"] = Field(
        default="sigmoid", description="That makes probabilities of the output; none: it is some."
    )
    spacing_mm: Float3 = Field(description="Grid the model works on, along x, y, z.")
    patch: Shape3 = Field(description="Window along x, y, z in voxels of that grid.")
    hu_window: tuple[float, float] = Field(
        default=(-175.0, 250.0), description="Hounsfield units are clipped to this."
    )
    shift: float | None = Field(
        default=None, description="Taken off the clipped HU; default: the window's lower end."
    )
    scale: float | None = Field(
        default=None, gt=0, description="Divides after that; default: the window's width, so 0..1."
    )
    axes: Axes = Field(
        default="xyz", description="Order of the network's spatial axes; MONAI's is xyz."
    )
    orientation: str = Field(
        default="RAS",
        pattern=r"^[RL][AP][SI]$",
        description="Towards where x, y and z ran in training; MONAI's Orientationd makes RAS.",
    )

    @model_validator(mode="after")
    def _plausible(self) -> Self:
        if not self.hu_window[0] < self.hu_window[1]:
            raise ValueError(f"hu_window {self.hu_window}: expected lower < upper")
        if min(self.spacing_mm) <= 0 or min(self.patch) < 1:
            raise ValueError(f"spacing {self.spacing_mm} and patch {self.patch} must be positive")
        return self

    @property
    def network_axes(self) -> tuple[int, int, int]:
        """The network's axis i is axis network_axes[i] of (z, y, x)."""
        return (0, 1, 2) if self.axes == "zyx" else (2, 1, 0)

    @property
    def flipped(self) -> tuple[int, ...]:
        """Of (z, y, x), the axes that ran against RAS+."""
        return tuple(
            sorted(2 - axis for axis, letter in enumerate(self.orientation) if letter in "LPI")
        )

    @property
    def intensities(self) -> tuple[float, float, float, float]:
        """Lower and upper clip, shift, scale."""
        low, high = self.hu_window
        shift = low if self.shift is None else self.shift
        return low, high, shift, high - low if self.scale is None else self.scale

    def spec(
        self,
        name: str,
        version: int,
        architecture: str,
        organs: tuple[str, ...],
        serving: Mapping[str, Any],
    ) -> ModelSpec:
        """The spec of a model that is described so; its graph is not written yet.

        Args:
            serving: further fields, such as its overlap.
        """
        return ModelSpec(
            name=name,
            version=version,
            architecture=architecture,
            organs=organs,
            spacing_mm=self.spacing_mm,
            patch=self.patch,
            hu_window=self.hu_window,
            activation="softmax" if self.activation == "softmax" else "sigmoid",
            sha256=NO_SHA256,
            **serving,
        )

    def groups(self, scheme: OrganScheme, case: str) -> dict[str, tuple[int, ...]]:
        """Organ → its channels, in the scheme's order.

        Raises:
            InvalidInput: no class is an organ; a lesion of an organ.
        """
        found: dict[str, list[int]] = {}
        for channel, name in enumerate(self.classes):
            organ = None if name is None else organ_called(name, scheme)
            if organ is not None:
                found.setdefault(organ, []).append(channel)
        if not found:
            raise InvalidInput(
                "no class is an organ of ours",
                case=case,
                expected=f"some of {', '.join(scheme.names)}",
                got=", ".join(str(name) for name in self.classes),
            )
        named = [name for name in self.classes if name is not None]
        lesions = open_lesions(named, scheme, found)
        require_answers(
            lesions,
            case,
            "under `classes`, write the organ's name in its place, which joins it, or null, which "
            "leaves it out",
        )
        return {organ: tuple(found[organ]) for organ in scheme.names if organ in found}

    def left_out(self, scheme: OrganScheme) -> dict[str, str]:
        """Class → why it is not served."""
        return {
            name: NO_ORGAN
            for name in self.classes
            if name is not None and organ_called(name, scheme) is None
        }


DescriptionT = TypeVar("DescriptionT", bound=ModelDescription)


def read_description(path: Path, kind: type[DescriptionT]) -> DescriptionT:
    """The description in a YAML file.

    Raises:
        ConfigurationError: the file cannot be read, or says something else.
    """
    try:
        content: Any = yaml.safe_load(path.read_text(encoding="utf-8"))
        return kind.model_validate(content)
    except ValidationError as error:
        fault = first_fault(error)
        raise ConfigurationError(
            f"the description of the model cannot work: {fault.where}",
            case=path.name,
            expected=fault.expected,
            got=fault.got,
            remedy="see docs/how-to/manage-models.md",
        ) from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigurationError(
            "the description of the model cannot be read", case=path.name, got=str(error)
        ) from None
