from .own_stack import enter, exclusive_demo, own_settings, stopped_by_sigterm, undisturbed

__all__ = [
    "enter",
    "exclusive_demo",
    "own_settings",
    "stopped_by_sigterm",
    "undisturbed",
]
