"""The `models` group of commands; each module adds its own to `app`."""

from atlas_flows.commands.models import evaluation, listing, promotion, version_sources
from atlas_flows.commands.models.app import app

__all__ = ["app", "evaluation", "listing", "promotion", "version_sources"]
