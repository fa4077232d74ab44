"""What a refusal by Triton means to a caller of this service."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from atlas_core.errors import (
    AtlasError,
    ConfigurationError,
    Unavailable,
)
from atlas_core.model_spec import ModelSpec
from tritonclient.utils import InferenceServerException

MAX_MESSAGE = 300
"""Characters of a server's message that are passed on; some carry a whole traceback."""

_CLOSED = "closed channel"
"""What gRPC says of a call by a client that was closed."""


class ServerUnreachable(Unavailable):
    """The server itself does not answer, as opposed to one of its models."""


@contextlib.contextmanager
def server_errors() -> Iterator[None]:
    """Raises what `translate` makes of an error of the client within the block."""
    try:
        yield
    except InferenceServerException as error:
        raise translate(error) from None
    except ValueError as error:
        if _CLOSED not in str(error):
            raise
        # It was retired by another thread, since its address is gone, between two calls.
        raise Unavailable(
            "the model server is no longer one of those that are used", remedy="ask again"
        ) from None


def status_name(error: InferenceServerException) -> str:
    """The gRPC status, for instance ``UNAVAILABLE``; empty where there is none."""
    return str(error.status() or "").removeprefix("StatusCode.")


def may_still_run(error: InferenceServerException | None) -> bool:
    """Whether the server may still be working on the request that ended with `error`."""
    return (
        error is not None
        and not is_not_loaded(error)
        and status_name(error) in {"CANCELLED", "DEADLINE_EXCEEDED", "UNAVAILABLE"}
    )


def is_not_loaded(error: InferenceServerException) -> bool:
    """The server answers, and says that it does not have this version (any more).

    Only the message shows it: for a version that is just being unloaded the status is that of an
    unreachable server.
    """
    return "unknown model" in error.message()


def is_unknown_region(error: InferenceServerException) -> bool:
    """The server does not know a region: it was restarted since the region was registered."""
    return "Unable to find shared memory region" in error.message()


def translate(error: InferenceServerException, spec: ModelSpec | None = None) -> AtlasError:
    """The error of this service for a refusal of the server.

    Args:
        spec: the model that was asked; None: the server itself.
    """
    who = f"model {spec.name}@{spec.version}" if spec else "the model server"
    status, message = status_name(error), error.message()[:MAX_MESSAGE]
    if is_not_loaded(error):
        return Unavailable(f"{who} is not loaded any more", remedy="ask again")
    if status == "UNAVAILABLE":
        return ServerUnreachable(
            "the model server does not answer", remedy="start it, or wait for it"
        )
    if status == "DEADLINE_EXCEEDED":
        return Unavailable(f"{who} did not answer in time", remedy="see the model server's log")
    if status == "CANCELLED":
        return Unavailable(f"the inference of {who} was cancelled")
    if status == "INVALID_ARGUMENT":
        return ConfigurationError(
            f"{who} refuses a window", got=message, remedy="install the model again"
        )
    return Unavailable(
        f"{who} fails though it is loaded",
        got=message,
        remedy="unload and load it again; its process may have died",
    )


def outcome_label(failure: AtlasError | None) -> str:
    """How the metrics name the outcome of an inference; dashboards and alerts select by it."""
    if failure is None:
        return "ok"
    return "away" if isinstance(failure, ServerUnreachable) else type(failure).__name__.lower()
