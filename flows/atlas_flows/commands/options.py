"""Options that several commands share.

Choices that `atlas_core` defines are repeated here, and the commands convert them: its records load
pydantic and NumPy, which `--help` can do without. A test compares the two.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Literal

import typer


class ReadingName(StrEnum):
    """The readings of the attention map, as `atlas_core.records.Reading`."""

    PAPER = "paper"
    RELEASED = "released"
    OPENED = "opened"


RankByName = Literal["disagreement", "size", "attended", "relative"]
"""As `atlas_core.records.RankBy`."""

ByOption = Annotated[
    RankByName,
    typer.Option(
        "--by",
        help="disagreement: how much the models' masks differ (1 − pairwise Dice), averaged over "
        "organs; which labels are worst. size: attention size, the paper's. attended: volume of "
        "attention of at least 0.2; where most millilitres are wrong. relative: attention of each "
        "organ against its own volume, averaged.",
    ),
]

TOP_SHARE = 0.05
"""As `atlas_core.review.TOP_SHARE`."""

ReadingOption = Annotated[
    ReadingName, typer.Option(help="paper: Eq. 1–4. released: thresholds of the published code.")
]
DatasetOption = Annotated[str | None, typer.Option(help="Only the cases of this dataset.")]
EnsembleOption = Annotated[
    str | None,
    typer.Option("--ensemble", help="Name of an ensemble that is loaded; default: the one in use."),
]
InFlightOption = Annotated[
    int, typer.Option(min=1, max=64, help="Cases worked on at the same time.")
]
OrgansOption = Annotated[
    str | None,
    typer.Option(
        help="Organs of a new atlas: a scheme that ships with us (`atlasloop organs list`), or a "
        "YAML file. An atlas that has cases keeps its own."
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")]
