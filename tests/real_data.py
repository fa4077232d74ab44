"""Where real volumes lie, for tests and reports."""

from __future__ import annotations

import os
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]


def real_data() -> Path:
    """Folder of real CTs, which may be missing: ATLASLOOP_DATA, else beside the repository."""
    return Path(os.environ.get("ATLASLOOP_DATA", REPOSITORY.parent / "shared" / "data"))
