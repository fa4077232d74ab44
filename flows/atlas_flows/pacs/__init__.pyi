from .pacs_site import (
    PacsSite,
    PullRunSummary,
    PushSummary,
    pull_series,
    push_cases,
    query_of,
    read_settings,
)

__all__ = [
    "PacsSite",
    "PullRunSummary",
    "PushSummary",
    "pull_series",
    "push_cases",
    "query_of",
    "read_settings",
]
