"""The `models` group of commands; each module adds its own to `app`."""

from atlas_flows.commands.models import evaluating, listing, making, serving
from atlas_flows.commands.models.app import app

__all__ = ["app", "evaluating", "listing", "making", "serving"]
