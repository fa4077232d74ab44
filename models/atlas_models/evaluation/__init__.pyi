from .metrics import (
    FIGURES,
    AgreementSummary,
    Comparison,
    Spread,
    as_csv,
    as_json,
    compare,
    organ_agreement,
    summarise,
)

__all__ = [
    "FIGURES",
    "AgreementSummary",
    "Comparison",
    "Spread",
    "as_csv",
    "as_json",
    "compare",
    "organ_agreement",
    "summarise",
]
