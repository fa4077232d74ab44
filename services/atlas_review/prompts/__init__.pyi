from .prompt import MAX_PROMPTS, Prompt, PromptKind
from .sessions import SWEEP_S, PromptSessions

__all__ = [
    "MAX_PROMPTS",
    "SWEEP_S",
    "Prompt",
    "PromptKind",
    "PromptSessions",
]
