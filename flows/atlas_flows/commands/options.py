"""Options that several commands have."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer
from atlas_core.records import Reading

if TYPE_CHECKING:
    pass


ReadingOption = Annotated[
    Reading, typer.Option(help="paper: Eq. 1–4. released: thresholds of the published code.")
]


DatasetOption = Annotated[str | None, typer.Option(help="Only the cases of this dataset.")]
