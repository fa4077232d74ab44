from .dataset import CT_NAME, INDEX_NAME, TRUTH_NAME, case_plan, write_phantoms
from .drawing import DRAWN_KINDS, draw_phantom
from .organs import HARD_KINDS, PHANTOM_ORGANS, TAIL_KINDS, Kind
from .people import ANATOMY_ORGANS, Anatomy, read_anatomy
from .scanner import Phantom, PhantomGrid, make_phantom

__all__ = [
    "ANATOMY_ORGANS",
    "CT_NAME",
    "DRAWN_KINDS",
    "HARD_KINDS",
    "INDEX_NAME",
    "PHANTOM_ORGANS",
    "TAIL_KINDS",
    "TRUTH_NAME",
    "Anatomy",
    "Kind",
    "Phantom",
    "PhantomGrid",
    "case_plan",
    "draw_phantom",
    "make_phantom",
    "read_anatomy",
    "write_phantoms",
]
