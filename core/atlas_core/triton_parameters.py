"""What is agreed about models in Triton: the parameters in which a model describes itself.

Who writes a model repository (`atlas_models.serving`) and who asks the server
(`atlas_attention.triton`) both read it here.
"""

from __future__ import annotations

SPEC_PARAMETER = "atlasloop.spec."
"""Prefix of the config parameters that hold a `ModelSpec` as JSON; the Triton version follows."""


IN_SERVICE_PARAMETER = "atlasloop.in_service"
"""Config parameter: the Triton version that answers when none is asked for; "0": none of them."""
