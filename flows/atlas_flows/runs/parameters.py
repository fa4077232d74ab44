"""Types of the flows' parameters: the form in the Prefect UI shows their bounds, the server keeps
them."""

from __future__ import annotations

from typing import Annotated

from atlas_core.assembly import PostProcessing
from atlas_core.model_spec import ModelName
from atlas_core.organs import OrganName
from atlas_core.records import CaseId
from pydantic import Field

CaseIds = Annotated[list[CaseId], Field(max_length=100_000)]

BoundedOrganName = Annotated[OrganName, Field(max_length=63)]
"""The bound is said once more because a schema does not show what a function checks."""

OrganNames = Annotated[list[BoundedOrganName], Field(max_length=255)]
"""No more organs than a label map has values."""

PostProcessingByOrgan = Annotated[dict[BoundedOrganName, PostProcessing], Field(max_length=255)]

LabelName = Annotated[str, Field(min_length=1, max_length=200)]

LabelNames = Annotated[
    dict[BoundedOrganName, Annotated[list[LabelName], Field(max_length=255)]],
    Field(max_length=255),
]
"""For an organ, the labels of somebody else that mean it."""

ModelNames = Annotated[list[ModelName], Field(max_length=64)]

ModelReference = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]{0,62}(@[0-9]{1,6})?$")]
"""As `ModelRef.parse` reads it."""

ModelReferences = Annotated[list[ModelReference], Field(max_length=64)]

EnsembleKey = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_@+.-]{0,5999}$")]
"""As `ensemble_key` makes it, of at most 64 models."""

SchemeName = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]{0,62}$")]
"""Of an organ scheme that ships with us."""

FilePath = Annotated[str, Field(min_length=1, max_length=4095, pattern=r"^[^\x00-\x1f\x7f]+$")]
"""Below the landing folder of the machine where the flow runs (`landing_path`); as long as Linux
allows."""
