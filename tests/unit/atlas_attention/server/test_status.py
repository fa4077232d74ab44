"""Every domain error has one status; faults of our own show no details."""

from __future__ import annotations

import inspect
from concurrent.futures import CancelledError

import grpc
import pytest
from atlas_attention.scoring import BusyError
from atlas_attention.server.status import TooSlowError, status_of
from atlas_core import errors

EXPECTED = {
    errors.InvalidInput: "INVALID_ARGUMENT",
    errors.UnsupportedVolume: "INVALID_ARGUMENT",
    errors.GridMismatch: "INVALID_ARGUMENT",
    errors.UnknownLabel: "INVALID_ARGUMENT",
    errors.CorruptFile: "DATA_LOSS",
    errors.LimitExceeded: "OUT_OF_RANGE",
    errors.NotFound: "NOT_FOUND",
    errors.Conflict: "ABORTED",
    errors.Unavailable: "UNAVAILABLE",
    errors.ConfigurationError: "FAILED_PRECONDITION",
    BusyError: "RESOURCE_EXHAUSTED",
    TooSlowError: "DEADLINE_EXCEEDED",
}


@pytest.mark.parametrize(("error", "status"), EXPECTED.items())
def test_status_and_message(error: type[errors.AtlasError], status: str) -> None:
    outcome = status_of(error("a rule is broken", case="X_1", got=3, remedy="mend it"))
    assert outcome.code.name == status
    assert outcome.message == "X_1: a rule is broken (got 3); mend it"
    assert outcome.error_id is None


def test_every_domain_error_has_a_status() -> None:
    domain = {
        member
        for _, member in inspect.getmembers(errors, inspect.isclass)
        if issubclass(member, errors.AtlasError)
    }
    assert domain - {errors.AtlasError} <= set(EXPECTED)


def test_a_cancelled_call() -> None:
    assert status_of(CancelledError()).code is grpc.StatusCode.CANCELLED
    assert status_of(GeneratorExit()).code is grpc.StatusCode.CANCELLED


def test_internal_errors_show_only_an_id() -> None:
    outcome = status_of(KeyError("/home/someone/secret"))
    assert outcome.code is grpc.StatusCode.INTERNAL
    assert "secret" not in outcome.message
    assert outcome.error_id is not None
    assert outcome.error_id in outcome.message
