from .demo_stack import (
    demo_settings,
    exclusive_demo,
    signals_ignored,
    sigterm_as_interrupt,
    use_stack,
)

__all__ = [
    "demo_settings",
    "exclusive_demo",
    "signals_ignored",
    "sigterm_as_interrupt",
    "use_stack",
]
