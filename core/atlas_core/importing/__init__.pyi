from .importer import import_folder
from .presets import shipped_presets
from .summary import Fate, FileFate, ImportSummary, Note

__all__ = [
    "Fate",
    "FileFate",
    "ImportSummary",
    "Note",
    "import_folder",
    "shipped_presets",
]
