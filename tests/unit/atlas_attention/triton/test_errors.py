"""What a refusal by Triton means, and how the metrics name it."""

from __future__ import annotations

import pytest
import tritonclient.grpc as triton
from atlas_attention.triton.errors import (
    ServerUnreachable,
    is_not_loaded,
    may_still_run,
    outcome_label,
    server_errors,
    translate,
)
from atlas_core.errors import AtlasError, ConfigurationError, Unavailable
from tritonclient.utils import InferenceServerException


def refusal(status: str, message: str = "refused") -> InferenceServerException:
    return InferenceServerException(message, status=f"StatusCode.{status}")


@pytest.mark.parametrize(
    ("error", "kind", "outcome"),
    [
        (refusal("UNAVAILABLE"), ServerUnreachable, "away"),
        (refusal("UNAVAILABLE", "unknown model 'unet'"), Unavailable, "unavailable"),
        (refusal("DEADLINE_EXCEEDED"), Unavailable, "unavailable"),
        (refusal("INVALID_ARGUMENT"), ConfigurationError, "configurationerror"),
        (refusal("INTERNAL"), Unavailable, "unavailable"),
    ],
)
def test_refusals_become_errors_of_the_service(
    error: InferenceServerException, kind: type[AtlasError], outcome: str
) -> None:
    failure = translate(error)
    assert type(failure) is kind
    assert outcome_label(failure) == outcome
    assert outcome_label(None) == "ok"


def test_only_a_request_without_an_answer_may_still_run() -> None:
    assert may_still_run(refusal("DEADLINE_EXCEEDED"))
    assert not may_still_run(refusal("INVALID_ARGUMENT"))
    assert not may_still_run(None)
    unloading = refusal("UNAVAILABLE", "request for unknown model 'unet'")
    assert is_not_loaded(unloading) and not may_still_run(unloading)


def test_a_client_that_was_closed_meanwhile_is_a_server_that_is_gone() -> None:
    """Servers are retired by one thread while another asks them."""
    client = triton.InferenceServerClient("127.0.0.1:1")
    client.close()
    with pytest.raises(Unavailable, match="no longer one of those"), server_errors():
        client.get_inference_statistics()
    with pytest.raises(ValueError, match="another"), server_errors():
        raise ValueError("another fault")
