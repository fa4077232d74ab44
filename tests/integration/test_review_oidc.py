"""Sign-in by an OpenID provider in a process of its own: PKCE, signatures, claims, roles."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
from oidc_provider import running_provider, settings_for
from review_server import ReviewPlace, RunningReview, running_review

API = "/api/v1"


@dataclass(frozen=True)
class SignOn:
    """A service, and the provider that it trusts."""

    review: RunningReview
    issuer: str

    def behave(self, how: str) -> None:
        httpx.get(f"{self.issuer}/behave", params={"as": how}, trust_env=False).raise_for_status()

    def sign_in(self, client: httpx.Client, user: str) -> httpx.Response:
        """As a browser does: to the provider, and back."""
        away = client.get(f"{API}/auth/oidc/login")
        assert away.status_code == 302, away.text
        asked = httpx.URL(away.headers["location"]).copy_merge_params({"login_hint": user})
        back = httpx.get(asked, trust_env=False)
        return client.get(back.headers["location"])


@pytest.fixture(scope="module")
def sign_on(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SignOn]:
    place = ReviewPlace(tmp_path_factory.mktemp("oidc"))
    place.store.root.mkdir(parents=True)
    with running_provider() as issuer, running_review(place, **settings_for(issuer)) as review:
        yield SignOn(review, issuer)


@pytest.fixture
def browser(sign_on: SignOn) -> Iterator[httpx.Client]:
    sign_on.behave("well")
    with sign_on.review.client() as client:
        yield client


def test_groups_become_roles(sign_on: SignOn, browser: httpx.Client) -> None:
    assert browser.get(f"{API}/session").json()["auth"] == {"local": False, "oidc": True}
    answer = sign_on.sign_in(browser, "max")
    assert (answer.status_code, answer.headers["location"]) == (303, "/")
    session = browser.get(f"{API}/session").json()
    assert (session["user"], session["roles"]) == ("max", ["annotator", "manager"])
    browser.headers["X-CSRF-Token"] = session["csrf_token"]
    assert browser.post(f"{API}/queue", json={"count": 1}).status_code == 404  # nothing is scored
    assert browser.delete(f"{API}/session").status_code == 204


def test_a_user_without_a_role_stays_out(sign_on: SignOn, browser: httpx.Client) -> None:
    assert sign_on.sign_in(browser, "eve").status_code == 403
    assert browser.get(f"{API}/session").status_code == 401


@pytest.mark.parametrize(
    "how", ["alg-none", "other-key", "other-audience", "expired", "other-nonce"]
)
def test_an_invalid_token_opens_nothing(sign_on: SignOn, browser: httpx.Client, how: str) -> None:
    sign_on.behave(how)
    answer = sign_on.sign_in(browser, "max")
    assert answer.status_code == 403, answer.text
    assert browser.get(f"{API}/session").status_code == 401


def test_a_callback_works_only_in_the_browser_that_began(
    sign_on: SignOn, browser: httpx.Client
) -> None:
    away = browser.get(f"{API}/auth/oidc/login")
    back = httpx.get(away.headers["location"], trust_env=False).headers["location"]
    with sign_on.review.client() as other:
        assert other.get(back).status_code == 403
    assert browser.get(back).status_code == 303
    assert browser.get(back).status_code == 403  # and once


def test_without_a_provider_oidc_is_not_offered(tmp_path: Path) -> None:
    place = ReviewPlace(tmp_path)
    place.store.root.mkdir(parents=True)
    with running_review(place) as running, running.client() as client:
        assert client.get(f"{API}/auth/oidc/login").status_code == 404
