"""Where the REST API lies. Paths outside of it belong to the MONAI Label protocol and the page."""

from __future__ import annotations

from typing import Final

API_PREFIX: Final = "/api/v1"
