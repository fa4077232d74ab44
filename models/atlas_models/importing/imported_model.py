"""What an import yields besides the files that it writes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field

from atlas_core.model_spec import ModelSpec

TRAINABLE = "trainable"
"""In the provenance of a model: who trains it further, ``"monai"`` or ``"nnunet"``, or
``"no: <reason>"``."""


@dataclass(frozen=True)
class ImportedModel:
    """A model that was imported.

    Attributes:
        trainable: see `TRAINABLE`.
        left_out: class of the model → why it is not served.
        origin: further provenance: which files of it counted, and the like.
    """

    spec: ModelSpec
    trainable: str
    left_out: Mapping[str, str]
    origin: Mapping[str, str] = field(default_factory=dict)

    @property
    def provenance(self) -> dict[str, str]:
        """As the catalog keeps it."""
        left_out = {"left_out": json.dumps(dict(self.left_out))} if self.left_out else {}
        return {TRAINABLE: self.trainable, **left_out, **self.origin}
