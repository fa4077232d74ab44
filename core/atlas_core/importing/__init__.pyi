from .class_names import is_lesion, open_lesions, require_answers, without_lesion
from .importer import import_folder
from .presets import KIDNEYS, SIDES, preset, shipped_presets, structure_of
from .summary import ImportSummary, Note

__all__ = [
    "KIDNEYS",
    "SIDES",
    "ImportSummary",
    "Note",
    "import_folder",
    "is_lesion",
    "open_lesions",
    "preset",
    "require_answers",
    "shipped_presets",
    "structure_of",
    "without_lesion",
]
