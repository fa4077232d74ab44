"""What an import yields besides the files that it writes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from atlas_core.model_spec import ModelSpec
from atlas_core.organs import OrganScheme

from atlas_models.importing.organ_synonyms import organ_called

TRAINABLE = "trainable"
"""In the provenance of a model: who trains it further, ``"monai"`` or ``"nnunet"``, or
``"no: <reason>"``."""

NO_ORGAN = "no organ of the scheme"
NOT_CHOSEN = "not chosen"
"""Why a class is left out that is an organ of the atlas, and none of those that were asked for."""


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

    def chosen_from(self, scheme: OrganScheme) -> ImportedModel:
        """The same of a model that was imported for some organs of `scheme` alone: classes that
        were merely not chosen say so."""
        why_of = {
            name: NOT_CHOSEN if why == NO_ORGAN and organ_called(name, scheme) else why
            for name, why in self.left_out.items()
        }
        return replace(self, left_out=why_of)

    @property
    def provenance(self) -> dict[str, str]:
        """As the catalog keeps it."""
        left_out = {"left_out": json.dumps(dict(self.left_out))} if self.left_out else {}
        return {TRAINABLE: self.trainable, **left_out, **self.origin}
