"""Fills the model repository of a Triton that somebody else runs (compose, a cluster).

    python -m atlas_embedded.model_repository REPOSITORY --target cpu|gpu [--models FOLDER]

A new repository is filled with the exported models in `FOLDER`; one that was filled before is left
as it is, and every ``config.pbtxt`` is written for the target. Run before Triton starts.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from atlas_core.errors import AtlasError, ConfigurationError
from atlas_models.serving import (
    CpuServing,
    GpuServing,
    Serving,
    TritonRepository,
)

from atlas_embedded.triton_models import fill


def prepare(root: Path, serving: Serving, models: Path | None) -> tuple[str, ...]:
    """Install what is new from `models` and configure all for `serving`; names of all models.

    Raises:
        ConfigurationError: the repository cannot be written to.
        CorruptFile: an exported model is not what its description says.
    """
    repository = TritonRepository(root, serving)
    try:
        fill(repository, models)
        repository.configure()
    except OSError as error:
        raise ConfigurationError(
            f"the model repository {root} cannot be written to",
            got=error.strerror,
            remedy="check that its volume is mounted, writable for this user, and not full",
        ) from None
    return repository.models()


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status."""
    parser = argparse.ArgumentParser(prog="model_repository", description=__doc__)
    parser.add_argument("repository", type=Path)
    parser.add_argument("--target", choices=("cpu", "gpu"), required=True)
    parser.add_argument("--models", type=Path, help="folder of exported models to begin with")
    parser.add_argument("--cache", type=Path, help="folder of compiled models or engines")
    given = parser.parse_args(arguments)
    serving: Serving
    if given.target == "cpu":
        serving = CpuServing(cache_dir=given.cache)
    else:
        serving = GpuServing(engine_cache_dir=given.cache) if given.cache else GpuServing()
    try:
        names = prepare(given.repository, serving, given.models)
    except AtlasError as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    sys.stdout.write(f"models: {', '.join(names) or 'none yet'}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
