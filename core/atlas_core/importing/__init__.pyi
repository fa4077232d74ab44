from .case_checks import check_labels
from .class_names import is_lesion, open_lesions, require_answers, without_lesion
from .importer import import_folder
from .presets import preset, shipped_presets
from .summary import Fate, FileFate, ImportSummary, Note

__all__ = [
    "Fate",
    "FileFate",
    "ImportSummary",
    "Note",
    "check_labels",
    "import_folder",
    "is_lesion",
    "open_lesions",
    "preset",
    "require_answers",
    "shipped_presets",
    "without_lesion",
]
