from .demo_stack import (
    demo_settings,
    exclusive_demo,
    signals_ignored,
    sigterm_as_interrupt,
    use_stack,
)
from .phantom_nnunet import kept_results

__all__ = [
    "demo_settings",
    "exclusive_demo",
    "kept_results",
    "signals_ignored",
    "sigterm_as_interrupt",
    "use_stack",
]
