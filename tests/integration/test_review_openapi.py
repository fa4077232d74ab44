"""The service conforms to its own OpenAPI, whatever is sent to it (schemathesis)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from review_server import ReviewPlace, RunningReview, make_place, running_review
from schemathesis import Case
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
)


@pytest.fixture(scope="module")
def open_to_all(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningReview]:
    """A service of its own: the generated requests change its queue."""
    place: ReviewPlace = make_place(tmp_path_factory.mktemp("openapi"), cases=1, columns=32)
    with running_review(place, insecure=True) as running:
        yield running


@pytest.fixture(scope="module")
def api(open_to_all: RunningReview) -> schemathesis.schemas.BaseSchema:
    return schemathesis.openapi.from_url(f"{open_to_all.url}/api/v1/openapi.json")


def test_responses_conform_to_the_schema(api: schemathesis.schemas.BaseSchema) -> None:
    """Operation by operation: schemathesis's own pytest plug-in does not know pytest 9.2."""
    checks = [not_a_server_error, content_type_conformance, response_schema_conformance]
    for found in api.get_all_operations():

        @given(case=found.ok().as_strategy())
        @settings(
            max_examples=6,
            deadline=None,
            derandomize=True,
            database=None,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
        def try_out(case: Case) -> None:
            case.call_and_validate(checks=checks, timeout=60)

        try_out()


def test_every_operation_is_described(open_to_all: RunningReview, tmp_path: Path) -> None:
    with open_to_all.client() as client:
        paths = client.get("/api/v1/openapi.json").json()["paths"]
    operations = [one for path in paths.values() for one in path.values()]
    assert all(one.get("description") for one in operations)
    assert {"/api/v1/queue/next", "/api/v1/cases/{case_id}/labels"} <= set(paths)
