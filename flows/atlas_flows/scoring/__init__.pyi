from .scoring import ScoreRequest, ScoreSummary

__all__ = [
    "ScoreRequest",
    "ScoreSummary",
]
