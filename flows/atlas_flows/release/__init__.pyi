from .patient_table import read_patients
from .release_folder import ReleaseSummary

__all__ = [
    "ReleaseSummary",
    "read_patients",
]
