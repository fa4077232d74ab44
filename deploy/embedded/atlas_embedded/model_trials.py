"""Versions of models that are tried beside the one in service, and the end of abandoned trials.

A promotion loads a version beside the one in service, to judge it. One that is killed cannot unload
it again, and every version takes memory. So before anything is loaded, what is served is compared
with what the catalog knows: in service, or before that, or nothing that anybody decided.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from atlas_core.catalog import Catalog, Promotion, promotions
from atlas_core.errors import AtlasError, Conflict, NotFound
from atlas_core.model_spec import ModelSpec
from atlas_models.serving import SPEC_FILE, TritonRepository
from filelock import FileLock, Timeout
from sqlalchemy import make_url

from atlas_embedded.triton_models import TritonModels

_log = logging.getLogger(__name__)


@contextlib.contextmanager
def exclusive_change(repository: TritonRepository) -> Iterator[None]:
    """One change of what is in service at a time; the kernel releases the lock if this process
    dies.

    Raises:
        Conflict: another change is under way.
    """
    try:
        held = FileLock(repository.root / ".promotion.lock").acquire(blocking=False)
    except Timeout:
        raise Conflict("another promotion or rollback is under way", remedy="wait for it") from None
    with held:
        yield


@contextlib.contextmanager
def in_use(repository: TritonRepository, specs: Iterable[ModelSpec]) -> Iterator[None]:
    """Within the block these versions stay loaded, though nobody promoted them.

    Raises:
        NotFound: one is no longer served.
    """
    with contextlib.ExitStack() as held:
        for spec in specs:
            there = held.enter_context(_locked(repository, spec, fcntl.LOCK_SH))
            if not there or spec not in repository.served(spec.name):
                raise NotFound(
                    f"model {spec.name}@{spec.version} is no longer loaded",
                    remedy="see `atlasloop models list`",
                )
        yield


@contextlib.contextmanager
def untouched(repository: TritonRepository, specs: Iterable[ModelSpec]) -> Iterator[bool]:
    """Whether nobody has these versions `in_use`; if so, nobody gets them within the block."""
    with contextlib.ExitStack() as held:
        yield all(
            held.enter_context(_locked(repository, spec, fcntl.LOCK_EX | fcntl.LOCK_NB))
            for spec in specs
        )


def end_abandoned_trials(triton: TritonModels, catalog: Catalog) -> tuple[str, ...]:
    """Unload what promotions that were killed have left; the caller holds `exclusive_change`, so
    that none is under way. Versions in use (`in_use`) wait for the next time.

    Returns:
        ``NAME@T`` of each.

    Raises:
        ConfigurationError, Unavailable: see `TritonModels.load`; the repository is in order then.
    """
    ended = []
    for name in triton.repository.models():
        known = promotions(catalog, name)
        with contextlib.ExitStack() as held:
            trials = [
                spec
                for spec in abandoned(triton.repository, name, known)
                if held.enter_context(
                    _locked(triton.repository, spec, fcntl.LOCK_EX | fcntl.LOCK_NB)
                )
            ]
            if trials:
                _end(triton, name, trials, known)
        ended += [f"{name}@{spec.version}" for spec in trials]
    return tuple(ended)


def tidy(triton: TritonModels, catalog_url: str) -> None:
    """`end_abandoned_trials` at the start of a process. A promotion that is under way is left
    alone; without catalog or server, the next promotion does it."""
    if not _is_there(catalog_url):
        return
    try:
        with Catalog.open(catalog_url) as catalog, exclusive_change(triton.repository):
            for reference in end_abandoned_trials(triton, catalog):
                _log.warning("%s was on trial in a promotion that was killed: unloaded", reference)
    except Conflict:
        return
    except AtlasError as error:
        _log.warning("what is loaded was not compared with the catalog: %s", error)


def _is_there(catalog_url: str) -> bool:
    """False where opening the catalog would make one: nothing was ever promoted there."""
    address = make_url(catalog_url)
    return not address.drivername.startswith("sqlite") or Path(address.database or "").is_file()


def abandoned(
    repository: TritonRepository, name: str, known: Sequence[Promotion]
) -> list[ModelSpec]:
    """Versions that are served though no promotion in `known` (oldest first) put them into
    service, last or before that."""
    in_service = repository.in_service(name)
    kept = {in_service}
    if known:
        kept |= {known[-1].model.version, known[-1].previous_version}
    return [
        spec
        for spec in repository.served(name)
        # Where nothing is on record, older versions came with the repository.
        if spec.version not in kept and (known or in_service is None or spec.version > in_service)
    ]


def _end(
    triton: TritonModels, name: str, trials: Sequence[ModelSpec], known: Sequence[Promotion]
) -> None:
    repository = triton.repository
    left = [spec.version for spec in repository.served(name) if spec not in trials]
    decided = {version for p in known for version in (p.model.version, p.previous_version)}
    if left:
        repository.serve_only(name, left, repository.in_service(name))
        triton.load(name)
    else:
        triton.unload(name)
    for spec in trials:
        # What was never in service has its files elsewhere, where it was to be promoted from. A
        # catalog without any record may be a new one: its word is not enough to remove files.
        if not left or (known and spec.version not in decided):
            repository.remove(name, spec.version)


@contextlib.contextmanager
def _locked(repository: TritonRepository, spec: ModelSpec, how: int) -> Iterator[bool]:
    """A lock on a version, shared or not; whether it was to be had. The kernel releases the locks
    of a process that dies."""
    path = Path(repository.root, spec.name, str(spec.triton_version), SPEC_FILE)
    with contextlib.ExitStack() as opened:
        try:
            file = opened.enter_context(path.open("rb"))
            fcntl.flock(file, how)
        except (FileNotFoundError, BlockingIOError):
            yield False
        else:
            yield True
