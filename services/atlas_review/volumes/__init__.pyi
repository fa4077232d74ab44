from .archive import pieces, write_archive
from .attended_regions import OrganRegion
from .case_files import CaseFiles, ServedFile

__all__ = [
    "CaseFiles",
    "OrganRegion",
    "ServedFile",
    "pieces",
    "write_archive",
]
