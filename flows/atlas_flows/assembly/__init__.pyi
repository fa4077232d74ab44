from .assembling import AssemblyRequest, AssemblySummary

__all__ = [
    "AssemblyRequest",
    "AssemblySummary",
]
