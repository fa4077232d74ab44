from .demo_stack import demo_settings, only_one, signals_ignored, sigterm_as_interrupt, use_stack

__all__ = [
    "demo_settings",
    "only_one",
    "signals_ignored",
    "sigterm_as_interrupt",
    "use_stack",
]
