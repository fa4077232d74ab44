"""A small OpenID provider as a program: it signs with a key of its own, and lets anybody in as whom
the address says.

    python tests/oidc_provider.py PORT

``/authorize`` answers at once with a code for ``login_hint`` (or "ida"), as if somebody had typed a
password. ``/token`` insists on the PKCE verifier. ``/behave?as=…`` makes it misbehave from then on:
``alg-none``, ``other-key``, ``other-audience``, ``expired``, ``other-nonce``, or ``well``.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import secrets
import subprocess
import sys
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlencode, urlsplit

import httpx
from joserfc import jwt
from joserfc.jwk import RSAKey
from ports import free_port

KEY = RSAKey.generate_key(2048, {"kid": "the-key", "use": "sig"})
STRANGER = RSAKey.generate_key(2048, {"kid": "the-key", "use": "sig"})
CLIENT_ID = "atlasloop-review"
GROUPS = {"ida": ["radiology"], "max": ["radiology", "atlas-managers"], "eve": ["cafeteria"]}


class Provider(BaseHTTPRequestHandler):
    """All of it."""

    codes: dict[str, dict[str, str]] = {}  # noqa: RUF012  shared by all requests
    behaviour = "well"

    @property
    def issuer(self) -> str:
        host, port = self.server.server_address[:2]
        return f"http://{host!s}:{port}"

    def do_GET(self) -> None:
        url = urlsplit(self.path)
        query = {name: values[0] for name, values in parse_qs(url.query).items()}
        if url.path == "/.well-known/openid-configuration":
            self.answer(
                {
                    "issuer": self.issuer,
                    "authorization_endpoint": f"{self.issuer}/authorize",
                    "token_endpoint": f"{self.issuer}/token",
                    "jwks_uri": f"{self.issuer}/jwks",
                    "id_token_signing_alg_values_supported": ["none", "HS256", "RS256"],
                }
            )
        elif url.path == "/jwks":
            self.answer({"keys": [KEY.as_dict(private=False)]})
        elif url.path == "/behave":
            Provider.behaviour = query["as"]
            self.answer({})
        elif url.path == "/authorize":
            self.authorize(query)

    def authorize(self, query: dict[str, str]) -> None:
        assert query["response_type"] == "code"
        assert query["code_challenge_method"] == "S256"
        code = secrets.token_urlsafe(16)
        Provider.codes[code] = query
        back = urlencode({"code": code, "state": query["state"]})
        self.send_response(302)
        self.send_header("Location", f"{query['redirect_uri']}?{back}")
        self.send_header("Content-Length", "0")
        self.end_headers()

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"])).decode()
        form = {name: values[0] for name, values in parse_qs(body).items()}
        asked = Provider.codes.pop(form["code"], None)
        digest = hashlib.sha256(form.get("code_verifier", "").encode()).digest()
        challenge = base64.urlsafe_b64encode(digest).rstrip(b"=").decode()
        if asked is None or challenge != asked["code_challenge"]:
            self.answer({"error": "invalid_grant"}, 400)
            return
        token = self.id_token(asked)
        self.answer({"access_token": "a", "token_type": "Bearer", "id_token": token})

    def id_token(self, asked: dict[str, str]) -> str:
        how, name = Provider.behaviour, asked.get("login_hint", "ida")
        now = int(time.time())
        claims: dict[str, Any] = {
            "iss": self.issuer,
            "sub": f"sub-{name}",
            "aud": "somebody-else" if how == "other-audience" else CLIENT_ID,
            "exp": now - 3600 if how == "expired" else now + 300,
            "iat": now,
            "nonce": "x" if how == "other-nonce" else asked["nonce"],
            "preferred_username": name,
            "groups": GROUPS.get(name, []),
        }
        if how == "alg-none":
            parts = ({"alg": "none", "kid": "the-key"}, claims)
            return ".".join(_encoded(part) for part in parts) + "."
        key = STRANGER if how == "other-key" else KEY
        return jwt.encode({"alg": "RS256", "kid": "the-key"}, claims, key)

    def answer(self, content: dict[str, Any], status: int = 200) -> None:
        body = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *arguments: object) -> None:
        """Quiet."""


def _encoded(part: dict[str, Any]) -> str:
    return base64.urlsafe_b64encode(json.dumps(part).encode()).rstrip(b"=").decode()


@contextlib.contextmanager
def running_provider() -> Iterator[str]:
    """The provider in a process of its own; its address, which is its issuer."""
    port = free_port()
    issuer = f"http://127.0.0.1:{port}"
    process = subprocess.Popen([sys.executable, __file__, str(port)])
    try:
        while True:
            with contextlib.suppress(httpx.TransportError):
                httpx.get(f"{issuer}/jwks", trust_env=False)
                break
            assert process.poll() is None, "the provider ended"
            time.sleep(0.05)
        yield issuer
    finally:
        process.terminate()
        process.wait()


def settings_for(issuer: str) -> dict[str, object]:
    """Of a service that trusts the provider."""
    roles = '{"radiology": "annotator", "atlas-managers": "manager"}'
    return {"oidc_issuer": issuer, "allow_http_oidc": True, "oidc_roles": roles}


if __name__ == "__main__":
    ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Provider).serve_forever()
