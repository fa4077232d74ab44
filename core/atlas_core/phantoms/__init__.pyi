from .dataset import CT_NAME, INDEX_NAME, TRUTH_NAME, case_plan, write_phantoms
from .organs import HARD_KINDS, Kind
from .scanner import Grid, Phantom, make_phantom

__all__ = [
    "CT_NAME",
    "HARD_KINDS",
    "INDEX_NAME",
    "TRUTH_NAME",
    "Grid",
    "Kind",
    "Phantom",
    "case_plan",
    "make_phantom",
    "write_phantoms",
]
