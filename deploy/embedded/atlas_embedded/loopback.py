"""HTTP to a server on this machine."""

from __future__ import annotations

import http.client
import json
from base64 import b64encode

from atlas_core.errors import Unavailable

from atlas_embedded.settings import HOST

TIMEOUT_S = 10.0
"""A busy server on a busy machine answers late, not never."""


def fetch(port: int, path: str, json_body: str | None = None, auth: str | None = None) -> bytes:
    """The answer to a GET, or to a POST of `json_body`.

    Args:
        auth: ``user:password`` for HTTP's Basic authentication.

    Raises:
        Unavailable: no answer, or one that is no success.
    """
    headers = {"Content-Type": "application/json"}
    if auth is not None:
        headers["Authorization"] = f"Basic {b64encode(auth.encode()).decode()}"
    # http.client, not urllib: a proxy from the environment must not come between.
    connection = http.client.HTTPConnection(HOST, port, timeout=TIMEOUT_S)
    try:
        connection.request(
            "GET" if json_body is None else "POST",
            path,
            body=json_body,
            headers=headers,
        )
        answer = connection.getresponse()
        content = answer.read()
    except (OSError, http.client.HTTPException) as error:
        raise Unavailable(f"nothing answers at {HOST}:{port}", got=type(error).__name__) from None
    finally:
        connection.close()
    if not 200 <= answer.status < 300:
        said = problem_detail(content) or f"HTTP {answer.status}"
        raise Unavailable(f"{HOST}:{port} answers with an error", got=said)
    return content


def problem_detail(content: bytes) -> str:
    """What an HTTP problem says, for people; "" where it is none: a proxy's page."""
    try:
        return str(json.loads(content)["detail"])
    except (ValueError, KeyError, TypeError):
        return ""
