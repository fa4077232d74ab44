from .case_assembly import AssemblyRequest, AssemblySummary

__all__ = [
    "AssemblyRequest",
    "AssemblySummary",
]
