"""What all requests share: settings, catalog, case store, and what is built on them."""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Final, TypeVar

import anyio
from atlas_core.catalog import Catalog
from atlas_core.errors import ConfigurationError
from atlas_core.review import (
    AuditLog,
    CaseReview,
    Comments,
    Drafts,
    LabelVersions,
    RevisionQueue,
    SignIns,
    TaskFilter,
)
from atlas_core.store import CaseStore

from atlas_review.auth import Accounts, SignInAttempts, SignInCache, write_private
from atlas_review.metrics import ReviewMetrics
from atlas_review.next_cases import NextCases
from atlas_review.prompts import PromptSessions
from atlas_review.settings import ENV_PREFIX, ReviewSettings
from atlas_review.volumes import CaseFiles, Shapes

MAX_HASHING: Final = 4
"""Passwords that are hashed at once, each in 32 MiB and a tenth of a second."""

VolumeResultT = TypeVar("VolumeResultT")


@dataclass(frozen=True)
class Review:
    """One running service. Everything in it may be shared between threads."""

    settings: ReviewSettings
    catalog: Catalog
    store: CaseStore
    queue: RevisionQueue
    client_queue: RevisionQueue
    """The same queue, with the longer leases of clients that have no page."""
    versions: LabelVersions
    drafts: Drafts
    comments: Comments
    cases: CaseReview
    audit: AuditLog
    sign_ins: SignInCache
    accounts: Accounts
    sign_in_attempts: SignInAttempts
    files: CaseFiles
    shapes: Shapes
    next_cases: NextCases
    next_client_cases: NextCases
    prompts: PromptSessions | None
    """None: no nnInteractive server is configured."""
    volume_threads: anyio.CapacityLimiter
    prompt_threads: anyio.CapacityLimiter
    password_threads: anyio.CapacityLimiter
    metrics: ReviewMetrics
    secret: bytes

    @classmethod
    def open(cls, settings: ReviewSettings) -> Review:
        """Connect to the catalog; the caller closes it.

        Raises:
            ConfigurationError, Unavailable: as `Catalog.open`.
        """
        catalog = open_catalog(settings)
        store = CaseStore(settings.store)
        store.sweep()
        versions = LabelVersions(catalog, max_proposals=settings.max_proposals)
        cases = CaseReview(catalog)
        queue = RevisionQueue(catalog, lease=timedelta(seconds=settings.lease_s))
        files = CaseFiles(store, catalog, versions, cases, settings)
        client_lease = timedelta(hours=settings.client_lease_hours)
        client_queue = RevisionQueue(catalog, lease=client_lease)
        return cls(
            settings=settings,
            catalog=catalog,
            store=store,
            queue=queue,
            client_queue=client_queue,
            versions=versions,
            drafts=Drafts(catalog),
            comments=Comments(catalog),
            cases=cases,
            audit=AuditLog(catalog),
            sign_ins=SignInCache(SignIns(catalog)),
            accounts=Accounts(settings.accounts_file),
            sign_in_attempts=SignInAttempts(),
            prompts=_prompt_sessions(settings),
            prompt_threads=anyio.CapacityLimiter(settings.nninteractive_sessions),
            next_cases=NextCases(queue),
            next_client_cases=NextCases(client_queue),
            volume_threads=anyio.CapacityLimiter(settings.volume_threads or _half_the_cores()),
            password_threads=anyio.CapacityLimiter(min(MAX_HASHING, _half_the_cores())),
            files=files,
            shapes=Shapes(store, files, versions, settings.organs),
            metrics=ReviewMetrics(lambda: queue.counts(TaskFilter()).model_dump()),
            secret=signing_secret(settings),
        )

    async def on_volume(self, work: Callable[..., VolumeResultT], *arguments: Any) -> VolumeResultT:
        """Run `work`, which reads or writes voxels, in one of a few threads: requests of the queue
        take milliseconds and must not wait behind volumes."""
        return await anyio.to_thread.run_sync(work, *arguments, limiter=self.volume_threads)

    async def on_prompts(
        self, work: Callable[..., VolumeResultT], *arguments: Any
    ) -> VolumeResultT:
        """Run `work`, which waits for an nnInteractive server, in one of as many threads as there
        are sessions with it: nothing else waits behind predictions."""
        return await anyio.to_thread.run_sync(work, *arguments, limiter=self.prompt_threads)

    @property
    def sign_in_methods(self) -> dict[str, bool]:
        """Sign-in method of people (``local``, ``oidc``) → whether it is offered."""
        oidc = self.settings.oidc_issuer is not None
        return {"local": bool(self.accounts.content().users), "oidc": oidc}


def open_catalog(settings: ReviewSettings) -> Catalog:
    """The catalog, of an atlas with the organs that this service is configured for.

    Raises:
        ConfigurationError, Unavailable: as `Catalog.open`, and for other organs.
    """
    catalog = Catalog.open(settings.catalog_url.get_secret_value())
    try:
        require_same_organs(settings, catalog)
    except BaseException:
        catalog.close()
        raise
    return catalog


def require_same_organs(settings: ReviewSettings, catalog: Catalog) -> None:
    """Refuse an atlas whose label values mean something else than this service takes them for.

    Raises:
        ConfigurationError: names both.
    """
    catalog.organ_scheme().require_same(
        settings.organs,
        this="the atlas",
        that="the review service",
        remedy="restart it with the atlas's: `atlasloop up` does; elsewhere set "
        f"{ENV_PREFIX}ORGANS to them (`atlasloop organs show`)",
    )


def _prompt_sessions(settings: ReviewSettings) -> PromptSessions | None:
    if settings.nninteractive_url is None:
        return None
    key = settings.nninteractive_key
    return PromptSessions(
        settings.nninteractive_url,
        key.get_secret_value() if key else "",
        settings.nninteractive_sessions,
        settings.nninteractive_timeout_s,
    )


def _half_the_cores() -> int:
    return max(1, len(os.sched_getaffinity(0)) // 2)


def signing_secret(settings: ReviewSettings) -> bytes:
    """The secret that signs cookies and image ids; made at the first start unless it is configured.

    Raises:
        ConfigurationError: the secret file holds too little.
    """
    if settings.secret is not None:
        return settings.secret.get_secret_value().encode()
    path = settings.secret_file
    if not path.exists():
        write_private(path, secrets.token_hex(32).encode())
    found = path.read_bytes()
    if len(found) < 32:
        raise ConfigurationError("the secret is too short", remedy=f"remove {path}")
    return found
