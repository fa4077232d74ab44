from .case_scoring import ScoreRequest, ScoreSummary, log

__all__ = [
    "ScoreRequest",
    "ScoreSummary",
    "log",
]
