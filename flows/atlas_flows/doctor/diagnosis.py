"""All checks of a site, one after the other."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from atlas_core.addresses import is_loopback
from atlas_core.catalog import Catalog

from atlas_flows.doctor import surroundings
from atlas_flows.doctor.findings import Finding, examine
from atlas_flows.doctor.served_models import served_models
from atlas_flows.models import Site
from atlas_flows.settings import Places


@dataclass(frozen=True)
class Bounds:
    """What a site is held against.

    Attributes:
        most_step: of an answer from the CPU's, in steps of 255.
        least_dice: of masks with the CPU's.
        windows_a_second: by each server and model; 0: no matter.
        windows_in_flight: of the attention service.
        shared_memory: its folder.
        review: whether there is to be a review service.
    """

    most_step: int = 26
    least_dice: float = 0.99
    windows_a_second: float = 0.0
    windows_in_flight: int = 5
    shared_memory: Path = Path("/dev/shm")  # noqa: S108  the place POSIX shared memory has on Linux
    review: bool = True


def diagnose(places: Places, bounds: Bounds) -> Iterator[Finding]:
    """Findings as they come; no check keeps the others from being made."""
    yield from examine("disk", lambda: surroundings.disk(places.store))
    yield from examine("file system", lambda: surroundings.filesystem(places.store))
    yield from examine("catalog", lambda: list(_by_catalog(places, bounds)))
    yield from examine("Prefect", lambda: list(surroundings.prefect(places)))
    yield from examine("attention service", lambda: surroundings.attention(places))
    if bounds.review:
        yield from examine("review service", lambda: surroundings.review(places))


def _by_catalog(places: Places, bounds: Bounds) -> Iterator[Finding]:
    with Catalog.open(places.catalog_url) as catalog:
        yield from examine("database", lambda: list(surroundings.database(catalog)))
        yield from examine("models", lambda: list(_of_models(places, catalog, bounds)))


def _of_models(places: Places, catalog: Catalog, bounds: Bounds) -> Iterator[Finding]:
    site = Site.of(places, catalog)
    repository = site.repository
    specs = [spec for name in repository.needed() for spec in repository.served(name)]
    if is_loopback(places.attention_address):  # of another machine, or pod, we see nothing
        yield surroundings.shared_memory(bounds.shared_memory, specs, bounds.windows_in_flight)
    yield from served_models(
        site,
        most_step=bounds.most_step,
        least=bounds.least_dice,
        windows_a_second=bounds.windows_a_second,
    )
