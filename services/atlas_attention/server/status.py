"""The gRPC status of every exception: one table, used by every call."""

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
from atlas_core.json_logs import shortened

from atlas_attention.scoring import BusyError


class TooSlowError(AtlasError):
    """The client did not send for too long."""


_STATUS: tuple[tuple[type[BaseException], grpc.StatusCode], ...] = (
    # The first match counts, so subclasses come before their base.
    (CorruptFile, grpc.StatusCode.DATA_LOSS),
    (InvalidInput, grpc.StatusCode.INVALID_ARGUMENT),
    # RESOURCE_EXHAUSTED would promise that a retry can help.
    (LimitExceeded, grpc.StatusCode.OUT_OF_RANGE),
    (NotFound, grpc.StatusCode.NOT_FOUND),
    (Conflict, grpc.StatusCode.ABORTED),
    (Unavailable, grpc.StatusCode.UNAVAILABLE),
    (ConfigurationError, grpc.StatusCode.FAILED_PRECONDITION),
    (BusyError, grpc.StatusCode.RESOURCE_EXHAUSTED),
    (TooSlowError, grpc.StatusCode.DEADLINE_EXCEEDED),
    (CancelledError, grpc.StatusCode.CANCELLED),
)


_NOT_WRITABLE = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)
"""What an administrator can fix while the client retries, rather than a fault of the service."""


@dataclass(frozen=True)
class CallStatus:
    """How a call ended.

    Attributes:
        message: shown to the client.
        error_id: of the traceback in the log; None unless the failure is a fault of the service.
    """

    code: grpc.StatusCode
    message: str = ""
    error_id: str | None = None


OK = CallStatus(grpc.StatusCode.OK)


def status_of(error: BaseException) -> CallStatus:
    """The status for `error`; what no client caused or can fix is INTERNAL, without details."""
    for kind, code in _STATUS:
        if isinstance(error, kind):
            return CallStatus(code, shortened(str(error)) or "the call was cancelled")
    if isinstance(error, OSError) and error.errno in _NOT_WRITABLE:
        return CallStatus(
            grpc.StatusCode.UNAVAILABLE,
            f"nothing can be written now: {error.strerror}; make room on the disks of case "
            "store and spool folder, or mount them writable",
        )
    if isinstance(error, GeneratorExit):
        return CallStatus(grpc.StatusCode.CANCELLED, "the client left")
    error_id = secrets.token_hex(6)
    return CallStatus(
        grpc.StatusCode.INTERNAL, f"internal error {error_id}; see the service's log", error_id
    )
