"""What an exception means on the wire: one table, used by every call."""

from __future__ import annotations

import errno
import secrets
from concurrent.futures import CancelledError
from dataclasses import dataclass

import grpc
from atlas_core.errors import (
    AtlasError,
    ConfigurationError,
    Conflict,
    CorruptFile,
    InvalidInput,
    LimitExceeded,
    NotFound,
    Unavailable,
)

from atlas_attention.scoring import BusyError


class TooSlowError(AtlasError):
    """The client did not send or take for too long."""


_STATUS: tuple[tuple[type[BaseException], grpc.StatusCode], ...] = (
    # First match counts: subclasses stand before their base.
    (CorruptFile, grpc.StatusCode.DATA_LOSS),
    (InvalidInput, grpc.StatusCode.INVALID_ARGUMENT),
    # Sending it again cannot help, which RESOURCE_EXHAUSTED would promise.
    (LimitExceeded, grpc.StatusCode.OUT_OF_RANGE),
    (NotFound, grpc.StatusCode.NOT_FOUND),
    (Conflict, grpc.StatusCode.ABORTED),
    (Unavailable, grpc.StatusCode.UNAVAILABLE),
    (ConfigurationError, grpc.StatusCode.FAILED_PRECONDITION),
    (BusyError, grpc.StatusCode.RESOURCE_EXHAUSTED),
    (TooSlowError, grpc.StatusCode.DEADLINE_EXCEEDED),
    (CancelledError, grpc.StatusCode.CANCELLED),
)


_NO_PLACE_TO_WRITE = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)
"""What an administrator mends while the client waits, rather than a fault of ours."""


@dataclass(frozen=True)
class Outcome:
    """How a call ended.

    Attributes:
        message: shown to the client.
        error_id: names the traceback in the log; None unless the failure is a fault of ours.
    """

    code: grpc.StatusCode
    message: str = ""
    error_id: str | None = None


OK = Outcome(grpc.StatusCode.OK)


def outcome_of(error: BaseException) -> Outcome:
    """The status for `error`; what no client caused or can mend is INTERNAL, without details."""
    for kind, code in _STATUS:
        if isinstance(error, kind):
            return Outcome(code, str(error) or "the call was cancelled")
    if isinstance(error, OSError) and error.errno in _NO_PLACE_TO_WRITE:
        return Outcome(
            grpc.StatusCode.UNAVAILABLE,
            f"nothing can be written now: {error.strerror}; make room on the disks of case "
            "store and spool folder, or mount them writable",
        )
    if isinstance(error, GeneratorExit):
        return Outcome(grpc.StatusCode.CANCELLED, "the client left")
    error_id = secrets.token_hex(6)
    return Outcome(
        grpc.StatusCode.INTERNAL, f"internal error {error_id}; see the service's log", error_id
    )
