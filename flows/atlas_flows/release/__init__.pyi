from .releasing import ReleaseSummary, read_patients

__all__ = [
    "ReleaseSummary",
    "read_patients",
]
