"""What a refusal of Triton means to a caller of this service."""

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


class _Away(Unavailable):
    """The server itself does not answer, as opposed to one model of it."""


@contextlib.contextmanager
def _server_errors() -> Iterator[None]:
    try:
        yield
    except InferenceServerException as error:
        raise _translate(error) from None


def _status(error: InferenceServerException) -> str:
    return str(error.status() or "").removeprefix("StatusCode.")


def _unanswered(error: InferenceServerException | None) -> bool:
    """The server may still work on the request."""
    return (
        error is not None
        and not _not_loaded(error)
        and _status(error) in {"CANCELLED", "DEADLINE_EXCEEDED", "UNAVAILABLE"}
    )


def _not_loaded(error: InferenceServerException) -> bool:
    """The server is there and says that it does not have this version (any more).

    Only the words tell: a version that it is just unloading has the status of a server away.
    """
    return "unknown model" in error.message()


def _region_unknown(error: InferenceServerException) -> bool:
    return "Unable to find shared memory region" in error.message()


def _translate(error: InferenceServerException, spec: ModelSpec | None = None) -> AtlasError:
    """What a refusal of the server means to a caller of this service."""
    who = f"model {spec.name}@{spec.version}" if spec else "the model server"
    status, message = _status(error), error.message()[:MAX_MESSAGE]
    if _not_loaded(error):
        return Unavailable(f"{who} is not loaded any more", remedy="ask again")
    if status == "UNAVAILABLE":
        return _Away("the model server does not answer", remedy="start it, or wait for it")
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
