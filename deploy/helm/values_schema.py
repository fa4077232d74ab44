"""Writes the chart's ``values.schema.json``: closed, and with our settings classes inside.

    python deploy/helm/values_schema.py            (make chart-schema)

The shape comes from ``values.yaml`` itself; what a value may be beyond its type is said below. The
fields under ``attention.settings``, ``pacs.settings`` and ``review.settings`` are those of the
configuration classes, less the ones that the chart decides. Helm reads draft 7.
"""

from __future__ import annotations

import copy
import importlib
import json
import sys
from pathlib import Path
from typing import Any

import yaml

CHART = Path(__file__).parent / "atlasloop"
SCHEMA = CHART / "values.schema.json"

Schema = dict[str, Any]

DECIDED_BY_CHART = {
    "attention": {
        "listen", "metrics_listen", "allow_remote", "triton", "triton_tls", "store", "spool_folder",
        "stop_grace_s", "organs",
    },
    "review": {
        "listen", "metrics_listen", "store", "home", "catalog_url", "secret", "oidc_client_secret",
        "insecure", "allow_http_oidc", "organs",
    },
    "pacs": {
        "listen", "inbox", "vault_url", "tls", "dicomweb_password", "dicomweb_token",
        "dicomweb_authority",
    },
    "flows": {
        "catalog_url", "store", "organs", "attention_address", "prefect_api_url", "prefect_hosts",
        "review_role", "review_url", "score_schedule", "triton_address", "triton_control_key",
        "triton_tls", "triton_load_timeout_s", "model_repository", "model_store", "training_runs",
        "landing", "training_deployment",
    },
}  # fmt: skip
"""Addresses and folders follow from the chart; secrets never stand in values; the last two are for
one machine."""

CLASSES = {
    "attention": "atlas_attention.settings:AttentionSettings",
    "flows": "atlas_flows.settings:FlowSettings",
    "pacs": "atlas_core.pacs:PacsSettings",
}

REVIEW_SETTINGS: dict[str, Schema] = {
    "public_url": {"type": "string", "pattern": "^https://"},
    "trusted_proxies": {"type": "string"},
    "accounts": {"type": "string", "pattern": "^/"},
    "metrics_hosts": {"type": "string"},
    "workers": {"type": "integer", "minimum": 1, "maximum": 64},
    "client_timeout_s": {"type": "integer", "minimum": 1},
    "volume_threads": {"type": "integer", "minimum": 0, "maximum": 64},
    "reading": {"enum": ["paper", "released"]},
    "lease_s": {"type": "number", "minimum": 10},
    "client_lease_hours": {"type": "number", "exclusiveMinimum": 0, "maximum": 168},
    "confirm_unvisited": {"type": "boolean"},
    "skipped_draft_hours": {"type": "number", "minimum": 0},
    "cors_origins": {"type": "string"},
    "session_hours": {"type": "number", "exclusiveMinimum": 0},
    "capability_minutes": {"type": "number", "exclusiveMinimum": 0},
    "max_proposals": {"type": "integer", "minimum": 1},
    "max_upload_bytes": {"type": "integer", "minimum": 1024},
    "max_voxels": {"type": "integer", "minimum": 1},
    "region_threshold": {"type": "number", "minimum": 0, "maximum": 2},
    "region_min_ml": {"type": "number", "minimum": 0},
    "sheet_interval_s": {"type": "number", "minimum": 0},
    "login_attempts": {"type": "integer", "minimum": 1},
    "oidc_issuer": {"type": "string", "pattern": "^https://"},
    "oidc_client_id": {"type": "string"},
    "oidc_scopes": {"type": "string"},
    "oidc_name_claim": {"type": "string"},
    "oidc_roles_claim": {"type": "string"},
    "oidc_roles": {
        "type": "object",
        "additionalProperties": {"enum": ["annotator", "reader", "manager"]},
    },
    "oidc_default_role": {"enum": ["annotator", "reader", "manager"]},
    "log_level": {"enum": ["DEBUG", "INFO", "WARNING", "ERROR"]},
}
"""Written out rather than generated: stricter than the class (TLS alone), and plain for Helm. A
test holds every name and value against the class."""

QUANTITY: Schema = {
    "type": "string",
    "pattern": r"^[0-9]+(\.[0-9]+)?(m|k|Ki|M|Mi|G|Gi|T|Ti|P|Pi)?$",
}
NAME: Schema = {"type": "string", "pattern": "^([a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?)?$"}
HOST: Schema = {"type": "string", "pattern": r"^([A-Za-z0-9]([-A-Za-z0-9.]*[A-Za-z0-9])?)?$"}
KEY: Schema = {"type": "string", "pattern": "^[-._a-zA-Z0-9]+$"}
STRINGS: Schema = {"type": "object", "additionalProperties": {"type": "string"}}
REGISTRY: Schema = {
    "type": "string",
    "pattern": "^([A-Za-z0-9.-]+(:[0-9]+)?(/[a-z0-9._/-]+)?)?$",
}
CIDRS: Schema = {
    "type": "array",
    "items": {"type": "string", "pattern": r"^[0-9a-fA-F.:]+/[0-9]{1,3}$"},
}
PORT: Schema = {"type": "integer", "minimum": 1, "maximum": 65535}
COUNT: Schema = {"type": "integer", "minimum": 1, "maximum": 64}
USER: Schema = {"type": "integer", "minimum": 1, "maximum": 2147483647}
SECONDS: Schema = {"type": "integer", "minimum": 1, "maximum": 604800}
SQL_NAME: Schema = {"type": "string", "pattern": "^[a-z_][a-z0-9_]{0,62}$"}
TOLERATIONS: Schema = {
    "type": "array",
    "items": {
        "type": "object",
        "additionalProperties": False,
        "properties": {
            "key": {"type": "string"},
            "operator": {"enum": ["Exists", "Equal"]},
            "value": {"type": "string"},
            "effect": {"enum": ["NoSchedule", "PreferNoSchedule", "NoExecute"]},
            "tolerationSeconds": {"type": "integer"},
        },
    },
}
AMOUNTS: Schema = {
    "type": "object",
    "additionalProperties": {"anyOf": [QUANTITY, {"type": "integer", "minimum": 0}]},
}
RESOURCES: Schema = {
    "type": "object",
    "additionalProperties": False,
    "properties": {"requests": AMOUNTS, "limits": AMOUNTS},
}

BY_NAME: dict[str, Schema] = {
    "nodeSelector": STRINGS, "podAnnotations": STRINGS, "annotations": STRINGS, "labels": STRINGS,
    "ingressNamespace": STRINGS, "monitoringNamespace": STRINGS, "dnsNamespace": STRINGS,
    "tolerations": TOLERATIONS, "resources": RESOURCES, "workerResources": RESOURCES,
    "existingSecret": NAME, "existingClaim": NAME, "tlsSecret": NAME, "configMap": NAME,
    "storageClass": NAME, "className": NAME, "priorityClassName": NAME, "host": HOST,
    "size": QUANTITY, "spool": QUANTITY, "sharedMemory": QUANTITY, "key": KEY,
    "catalogPasswordKey": KEY, "prefectPasswordKey": KEY, "passwordKey": KEY,
    "cidrs": CIDRS, "oidcCidrs": CIDRS, "dnsCidrs": CIDRS, "clientAuthority": NAME,
    "clientSecretKey": KEY, "cookieSecretKey": KEY, "groupsClaim": KEY,
    "issuer": {"type": "string", "pattern": "^(https://.+)?$"},
    "clientId": {"type": "string", "pattern": r"^[-._:/A-Za-z0-9]*$"},
    "allowedGroups": {"type": "array", "items": {"type": "string", "pattern": r"^[^,\n]+$"}},
    "port": PORT, "replicas": COUNT, "maxReplicas": COUNT, "runAsUser": USER, "runAsGroup": USER,
    "fsGroup": USER, "terminationGracePeriodSeconds": SECONDS, "startupSeconds": SECONDS,
    "finishedJobSeconds": SECONDS, "name": SQL_NAME, "user": SQL_NAME,
    "digest": {"type": "string", "pattern": "^(sha256:[0-9a-f]{64})?$"},
    "repository": {"type": "string", "pattern": "^[a-z0-9]+([._/-][a-z0-9]+)*$"},
    "registry": REGISTRY,
    "imageRegistry": REGISTRY,
    "tag": {"type": "string", "pattern": "^[A-Za-z0-9._-]*$", "not": {"const": "latest"}},
    "imagePullSecrets": {"type": "array", "items": {"type": "string", "minLength": 1}},
    "accessModes": {
        "type": "array", "minItems": 1,
        "items": {"enum": ["ReadWriteOnce", "ReadWriteOncePod", "ReadWriteMany"]},
    },
    "cpuPercent": {"type": "integer", "minimum": 1, "maximum": 1000},
    "pendingRequests": {"type": "integer", "minimum": 1},
    "keep": {"type": "integer", "minimum": 1},
    "gpus": {"type": "integer", "minimum": 0, "maximum": 16},
    "count": {"type": "integer", "minimum": 1, "maximum": 16},
    "ports": {"type": "array", "minItems": 1, "items": PORT},
    "dnsPorts": {"type": "array", "minItems": 1, "items": PORT},
    "keys": {"type": "array", "items": {"type": "string", "minLength": 1}},
    "oidcClientSecretKey": {"type": "string", "pattern": "^[-._a-zA-Z0-9]*$"},
    "schedule": {"type": "string", "pattern": r"^\S+ \S+ \S+ \S+ \S+$"},
    "scoreSchedule": {"type": "string", "pattern": r"^(\S+ \S+ \S+ \S+ \S+)?$"},
    "prometheusAddress": {"type": "string", "pattern": "^(https?://.+)?$"},
}  # fmt: skip
"""What a value of this name may be, wherever it stands."""

BY_PATH: dict[str, Schema] = {
    "database.mode": {"enum": ["embedded", "external"]},
    "database.sslmode": {"enum": ["verify-full", "verify-ca", "require"]},
    "triton.target": {"enum": ["cpu", "gpu"]},
    "triton.autoscaling.kind": {"enum": ["none", "hpa", "keda"]},
    "pacs.service.type": {"enum": ["ClusterIP", "NodePort", "LoadBalancer"]},
    "attention.placement": {"enum": ["service", "sidecar"]},
    "toolbox.image": {"enum": ["flows", "trainer"]},
}

RULES: list[Schema] = [
    {
        "if": {"properties": {"database": {"properties": {"mode": {"const": "external"}}}}},
        "then": {"properties": {"database": {"properties": {"host": {"minLength": 1}}}}},
    }
]
"""Rules between values that a schema can say; the rest is said by `fail` and `required`."""


def settings_schema(name: str) -> Schema:
    """Closed schema of the fields of a configuration class that an administrator may set."""
    if name == "review":
        return {"type": "object", "additionalProperties": False, "properties": REVIEW_SETTINGS}
    module, _, settings = CLASSES[name].partition(":")
    full = getattr(importlib.import_module(module), settings).model_json_schema()
    fields = {
        field: _plain(schema, full.get("$defs", {}))
        for field, schema in full["properties"].items()
        if field not in DECIDED_BY_CHART[name]
    }
    return {"type": "object", "additionalProperties": False, "properties": fields}


def _plain(schema: Any, definitions: Schema) -> Any:
    """`schema` with its references written out and without what Helm has no use for."""
    if isinstance(schema, list):
        return [_plain(one, definitions) for one in schema]
    if not isinstance(schema, dict):
        return schema
    if "$ref" in schema:
        return _plain(definitions[schema["$ref"].rpartition("/")[2]], definitions)
    dropped = {"title", "default", "examples"}
    return {key: _plain(one, definitions) for key, one in schema.items() if key not in dropped}


def schema_of(value: Any, path: tuple[str, ...]) -> Schema:
    """Schema of what stands at `path` of ``values.yaml``."""
    dotted, name = ".".join(path), path[-1] if path else ""
    if dotted in BY_PATH:
        return BY_PATH[dotted]
    if name == "settings":
        return settings_schema(path[0])
    if dotted == "flows.pools":
        return _pools(value)
    # `host` under `database` is one, an `image` map is none.
    if name in BY_NAME and not (isinstance(value, dict) and BY_NAME[name]["type"] != "object"):
        return BY_NAME[name]
    if isinstance(value, dict):
        return {
            "type": "object",
            "additionalProperties": False,
            "properties": {key: schema_of(one, (*path, key)) for key, one in value.items()},
        }
    kinds = {bool: "boolean", int: "integer", float: "number", str: "string", list: "array"}
    return {"type": kinds[type(value)]}


def _pools(value: dict[str, Any]) -> Schema:
    """Any number of pools of one shape; their names become names of objects."""
    shape = schema_of(value["cpu"], ("flows", "pools", "cpu"))
    shape["properties"]["image"] = {"enum": ["flows", "trainer"]}
    shape["required"] = sorted(value["cpu"])
    return {
        "type": "object",
        "required": ["cpu"],
        "additionalProperties": False,
        "patternProperties": {"^[a-z][a-z0-9-]{0,15}$": shape},
    }


def values_schema() -> Schema:
    """The whole schema."""
    values = yaml.safe_load((CHART / "values.yaml").read_text(encoding="utf-8"))
    whole = schema_of(values, ())
    return {
        "$schema": "http://json-schema.org/draft-07/schema#",
        "title": "Values of the Atlas Loop chart (written by deploy/helm/values_schema.py)",
        **copy.deepcopy(whole),
        "allOf": RULES,
    }


def main() -> int:
    """Write the schema."""
    SCHEMA.write_text(json.dumps(values_schema(), indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
