"""The home of a stack: a name that would break addresses and command lines, and who may look in."""

from __future__ import annotations

import os
import stat
import subprocess
from pathlib import Path

import pytest
from atlas_core.catalog import Catalog
from prefect_api import ask_prefect
from stack import HOME_NAME, Stack

OPEN = ("triton-repository", "compiled-models")
"""Models are no secret; the folder above them is closed all the same."""


def test_any_name_is_used_as_it_is(prefect_stack: Stack) -> None:
    """By Triton's shell and stub, by SQLAlchemy, and by Prefect: no part of it was cut or run."""
    settings, parent = prefect_stack.settings, prefect_stack.home.parent
    assert prefect_stack.home.name == HOME_NAME
    with prefect_stack.triton_client() as client:
        assert client.is_model_ready("conv_a")
    with Catalog.open(settings.catalog_url):
        assert (prefect_stack.home / "catalog.sqlite").is_file()
    assert ask_prefect(settings, "/flows/count", {}) >= 0
    assert (prefect_stack.home / "prefect" / "prefect.db").is_file()
    assert [path.name for path in parent.iterdir()] == [HOME_NAME]
    assert not list(prefect_stack.home.rglob("evil"))


def test_everything_is_its_owners_alone(prefect_stack: Stack) -> None:
    home = prefect_stack.home
    assert stat.S_IMODE(home.stat().st_mode) == 0o700
    for path in home.rglob("*"):
        if path.relative_to(home).parts[0] in OPEN or path.is_symlink():
            continue
        if any(folder in path.parents for folder in (home / "store", home / "prefect" / "storage")):
            continue  # other tests write there themselves, by their own umask
        try:
            mode = stat.S_IMODE(path.stat().st_mode)
        except FileNotFoundError:
            continue  # the stack is at work
        assert mode & 0o077 == 0, (path.relative_to(home), oct(mode))


@pytest.mark.skipif(os.getuid() != 0, reason="only root can act as another user")
def test_another_user_of_this_machine_sees_nothing(prefect_stack: Stack) -> None:
    home: Path = prefect_stack.home
    for place in (home, home / "store", home / "prefect" / "prefect.db"):
        listed = subprocess.run(
            ["ls", place], user=65534, group=65534, extra_groups=(), capture_output=True
        )
        assert listed.returncode != 0
        assert listed.stdout == b""
