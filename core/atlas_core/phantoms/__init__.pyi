from .dataset import CT_NAME, INDEX_NAME, TRUTH_NAME, case_plan, write_phantoms
from .organs import HARD_KINDS, PHANTOM_ORGANS, TAIL_KINDS, Kind
from .scanner import Phantom, PhantomGrid, make_phantom

__all__ = [
    "CT_NAME",
    "HARD_KINDS",
    "INDEX_NAME",
    "PHANTOM_ORGANS",
    "TAIL_KINDS",
    "TRUTH_NAME",
    "Kind",
    "Phantom",
    "PhantomGrid",
    "case_plan",
    "make_phantom",
    "write_phantoms",
]
