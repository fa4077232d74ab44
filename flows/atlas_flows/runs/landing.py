"""Paths that people give in forms: below the landing folder, which is mounted into the workers."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from atlas_core.atomic_writes import replace_file
from atlas_core.errors import ConfigurationError, InvalidInput

if TYPE_CHECKING:
    from atlas_flows.settings import Places


def landing_path(given: str, places: Places) -> Path:
    """Where `given` lies. A run that was started from a form is kept inside of the landing folder,
    links included; one that a command started sees what the user of that command sees.

    Raises:
        InvalidInput: it leads out of the landing folder.
        ConfigurationError: there is no landing folder, and none can be made.
    """
    from prefect import runtime

    if runtime.deployment.id is None:
        return Path(given).absolute()
    try:
        places.landing.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigurationError(
            "there is no landing folder", expected=places.landing, got=error.strerror
        ) from None
    root = places.landing.resolve()
    path = (root / given).resolve()
    if not path.is_relative_to(root):
        raise InvalidInput(
            "the path leads out of the landing folder",
            expected=f"a path below {places.landing}, as datasets/LiTS",
            remedy="copy the files there, or use the command, which takes any path",
        )
    return path


def write_file(path: Path, text: str, *, mode: int = 0o644) -> None:
    """Write `text` to `path`, all or nothing.

    Raises:
        ConfigurationError: the folder cannot be written to.
    """
    try:
        replace_file(path, text.encode("utf-8"), mode=mode)
    except OSError as error:
        raise ConfigurationError(
            f"cannot write {path.name}",
            got=error.strerror,
            remedy="name a file in a folder that exists and is writable",
        ) from None
