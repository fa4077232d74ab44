from .own_stack import enter, only_one, own_settings, stopped_by_sigterm, undisturbed

__all__ = [
    "enter",
    "only_one",
    "own_settings",
    "stopped_by_sigterm",
    "undisturbed",
]
