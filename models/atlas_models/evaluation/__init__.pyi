from .metrics import (
    FIGURES,
    Comparison,
    Spread,
    Summary,
    as_csv,
    as_json,
    compare,
    organ_agreement,
    summarise,
)

__all__ = [
    "FIGURES",
    "Comparison",
    "Spread",
    "Summary",
    "as_csv",
    "as_json",
    "compare",
    "organ_agreement",
    "summarise",
]
