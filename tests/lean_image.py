"""Services under test find no more packages than in their images, where much is left out."""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Mapping
from functools import cache
from importlib.metadata import packages_distributions
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]


@cache
def left_out(service: str) -> frozenset[str]:
    """Modules of the packages of the extra `core` that the extra of `service` does not name."""
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())
    extras = {
        name: {_canonical(one) for one in wanted}
        for name, wanted in project["project"]["optional-dependencies"].items()
    }
    packages = extras["core"] - extras[service] - {"atlasloop"}
    return frozenset(
        module
        for module, distributions in packages_distributions().items()
        if packages & {_canonical(one) for one in distributions}
    )


def _canonical(requirement: str) -> str:
    return re.sub(r"[-_.]+", "-", re.split(r"[\[<>=!; ]", requirement)[0]).lower()


def in_image(service: str, environment: Mapping[str, str] = os.environ) -> dict[str, str]:
    """`environment` for a process that is to find what the image of `service` has."""
    paths = [str(REPOSITORY / "tests" / "lean"), *environment.get("PYTHONPATH", "").split(":")]
    return {
        **environment,
        "PYTHONPATH": ":".join(filter(None, paths)),
        "ATLASLOOP_LEFT_OUT": ",".join(sorted(left_out(service))),
    }
