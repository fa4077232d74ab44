from .importer import import_folder
from .presets import shipped_presets
from .summary import ImportSummary, Note

__all__ = [
    "ImportSummary",
    "Note",
    "import_folder",
    "shipped_presets",
]
