from .importer import ImportSummary, Note, import_folder
from .presets import shipped_presets

__all__ = [
    "ImportSummary",
    "Note",
    "import_folder",
    "shipped_presets",
]
