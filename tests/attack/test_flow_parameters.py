"""What may be asked of the flows: whoever reaches the form, or its API, is bounded by its schema.

Prefect refuses a run whose parameters break the schema before it takes a place among the runs
(`tests/integration/test_score_flow.py` asks it to).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from atlas_flows.settings import Places
from atlas_flows.work_pools import Deployed, deployed_flows

Schema = dict[str, Any]

FLOWS = {one.flow.name: one for one in deployed_flows(Places.read())}


@pytest.fixture(params=sorted(FLOWS))
def deployed(request: pytest.FixtureRequest) -> Deployed:
    return FLOWS[request.param]


def unbounded(where: str, schema: Schema, definitions: Schema) -> Iterator[str]:
    """Parts of a parameter that a client may make as large as it likes."""
    for part in (*schema.get("anyOf", ()), *schema.get("allOf", ())):
        yield from unbounded(where, part, definitions)
    if "$ref" in schema:
        referred = definitions[schema["$ref"].rpartition("/")[2]]
        yield from unbounded(where, referred, definitions)
    match schema.get("type"):
        case "string" if not {"enum", "const", "maxLength", "pattern"} & schema.keys():
            yield f"{where}: a string of any length"
        case "string" if "pattern" in schema and "maxLength" not in schema:
            pattern = schema["pattern"]
            if not (pattern.startswith("^") and pattern.endswith("$")) or set("*+") & set(
                pattern.replace("@+", "")
            ):
                yield f"{where}: a pattern without a bound: {pattern}"
        case "array":
            if "maxItems" not in schema:
                yield f"{where}: a list of any length"
            yield from unbounded(f"{where}[]", schema["items"], definitions)
        case "object":
            for name, inner in schema.get("properties", {}).items():
                yield from unbounded(f"{where}.{name}", inner, definitions)
            if schema.get("additionalProperties", True) is not False:
                if "maxProperties" not in schema:
                    yield f"{where}: an object of any size"
                if "maxLength" not in schema.get("propertyNames", {}):
                    yield f"{where}: keys of any length"


def test_every_parameter_is_bounded_and_no_other_is_taken(deployed: Deployed) -> None:
    schema = deployed.deployment()._parameter_openapi_schema.model_dump(exclude_unset=True)
    assert schema["additionalProperties"] is False
    found = [
        problem
        for name, parameter in schema["properties"].items()
        for problem in unbounded(name, parameter, schema["definitions"])
    ]
    assert found == []
