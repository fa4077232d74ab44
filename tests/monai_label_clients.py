"""MONAI Label's own client, as 3D Slicer's extension uses it; tests skip where it is missing."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from review_server import PASSWORD

monailabel = pytest.importorskip(
    "monailabel.client", reason="NO MONAI LABEL CLIENT: pip install --no-deps monailabel==0.8.5"
)

MakeClient = Callable[[], Any]


def clients(url: str, folder: Path, user: str) -> MakeClient:
    """Makes a new client for each call: one that is reused with a token sends the length of its
    last upload with its next request, for whose body nginx then waits for ever."""
    folder.mkdir(exist_ok=True)
    token = None
    if monailabel.MONAILabelClient(url).auth_enabled():
        token = monailabel.MONAILabelClient(url).auth_token(user, PASSWORD)

    def make() -> Any:
        client = monailabel.MONAILabelClient(url, tmpdir=str(folder), client_id=user)
        client.update_auth(token)
        return client

    return make


def shaved(mask: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """`mask` without its lowest slice."""
    kept = mask.astype(np.uint8)
    kept[..., np.flatnonzero(mask.any(axis=(0, 1)))[0]] = 0
    return kept
