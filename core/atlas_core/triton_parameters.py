"""Config parameters by which a model in Triton describes itself.

Shared by the writer of the model repository (`atlas_models.serving`) and the client of the server
(`atlas_attention.triton`).
"""

from __future__ import annotations

SPEC_PARAMETER = "atlasloop.spec."
"""Prefix of the config parameters that hold a `ModelSpec` as JSON; the Triton version follows."""


IN_SERVICE_PARAMETER = "atlasloop.in_service"
"""Config parameter: the Triton version that answers requests naming no version; "0": none does."""
