"""Errors of signing in and of roles. Everything else fails with an error of `atlas_core.errors`."""

from __future__ import annotations

from collections.abc import Mapping

from atlas_core.errors import AtlasError


class NotSignedIn(AtlasError):
    """The caller has not signed in.

    Attributes:
        methods: sign-in method (``local``, ``oidc``) → whether this service offers it.
    """

    def __init__(self, methods: Mapping[str, bool]) -> None:
        self.methods = dict(methods)
        super().__init__("sign in first", remedy="sign in, or send a bearer token")


class NotAllowed(AtlasError):
    """The caller may not do this."""


class TooManyAttempts(AtlasError):
    """Sign-in failed too often, or too many sign in at once.

    Attributes:
        retry_after_s: seconds until the next attempt is accepted.
    """

    def __init__(self, retry_after_s: int) -> None:
        self.retry_after_s = retry_after_s
        super().__init__(
            "too many sign-ins that failed, or that wait", remedy=f"wait {retry_after_s} seconds"
        )
