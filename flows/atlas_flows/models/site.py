"""What a change of the models in service works with: server, catalog, stores and bounds."""

from __future__ import annotations

import getpass
import os
from dataclasses import dataclass
from typing import Self

from atlas_core.catalog import Catalog
from atlas_core.organs import OrganScheme
from atlas_core.store import CaseStore
from atlas_embedded.triton_models import TritonModels
from atlas_models.serving import TritonRepository

from atlas_flows.models.server import model_store, triton_models
from atlas_flows.models.store import ModelStore
from atlas_flows.settings import Places


@dataclass(frozen=True)
class Site:
    """What a promotion, or a change of an ensemble, works with.

    Attributes:
        triton: the running server and its repository.
        attention: address of the attention service, which predicts the cases.
        margin: by how much mean Dice may fall.
        models: every version that lies at this site.
        min_cases: on fewer nobody is judged.
        floor: mean Dice that the first version of a model needs.
    """

    triton: TritonModels
    catalog: Catalog
    store: CaseStore
    attention: str
    margin: float
    models: ModelStore
    min_cases: int = 5
    floor: float = 0.5

    @property
    def repository(self) -> TritonRepository:
        return self.triton.repository

    @property
    def scheme(self) -> OrganScheme:
        """The organs of this atlas."""
        return self.catalog.organ_scheme()

    @classmethod
    def of(cls, here: Places, catalog: Catalog, margin: float | None = None) -> Self:
        """What the settings name; `margin` None: theirs."""
        return cls(
            triton=triton_models(here),
            catalog=catalog,
            store=CaseStore(here.store),
            attention=here.attention_address,
            margin=here.promotion_margin if margin is None else margin,
            models=model_store(here),
            min_cases=here.promotion_min_cases,
            floor=here.promotion_floor,
        )


def user() -> str:
    """Name of the user who runs this; in a container it may be a number only."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return f"user {os.getuid()}"
