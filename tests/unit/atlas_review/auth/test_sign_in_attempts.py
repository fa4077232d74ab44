"""Failed sign-ins: counted per network, within a window, also while they are pending."""

from __future__ import annotations

import contextlib

import pytest
from atlas_review.auth import SignInAttempts
from atlas_review.auth.forwarding import network_of
from atlas_review.auth.sign_in_attempts import (
    BUSY_RETRY_S,
    MAX_NETWORKS,
    MAX_PENDING,
    WINDOW_S,
)
from atlas_review.errors import NotSignedIn, TooManyAttempts

HERE, THERE = "203.0.113.5", "203.0.113.6"


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def attempts(clock: Clock) -> SignInAttempts:
    return SignInAttempts(clock=clock)


def fail(attempts: SignInAttempts, limits: dict[str, int]) -> None:
    with contextlib.suppress(NotSignedIn), attempts.attempt(limits):
        raise NotSignedIn({})


def test_a_network_is_locked_out_until_its_oldest_failure_leaves_the_window(
    attempts: SignInAttempts, clock: Clock
) -> None:
    for _ in range(2):
        fail(attempts, {HERE: 2})
        clock.now += 60
    with pytest.raises(TooManyAttempts) as caught, attempts.attempt({HERE: 2}):
        pass
    assert caught.value.retry_after_s == WINDOW_S - 120
    clock.now += caught.value.retry_after_s
    with attempts.attempt({HERE: 2}):
        pass


def test_each_network_counts_for_itself(attempts: SignInAttempts) -> None:
    fail(attempts, {HERE: 5, THERE: 1})
    with attempts.attempt({HERE: 5}):
        pass
    with pytest.raises(TooManyAttempts), attempts.attempt({"198.51.100.1": 5, THERE: 1}):
        pass


def test_only_a_refused_sign_in_is_a_failure(attempts: SignInAttempts) -> None:
    with attempts.attempt({HERE: 1}):
        pass
    with contextlib.suppress(RuntimeError), attempts.attempt({HERE: 1}):
        raise RuntimeError
    with attempts.attempt({HERE: 1}):
        pass


def test_no_more_are_pending_than_may_fail(attempts: SignInAttempts) -> None:
    with attempts.attempt({HERE: 1}):
        with pytest.raises(TooManyAttempts) as caught, attempts.attempt({HERE: 1}):
            pass
        assert caught.value.retry_after_s == BUSY_RETRY_S
        with attempts.attempt({THERE: 1}):
            pass


def test_what_waits_is_bounded_whoever_comes(attempts: SignInAttempts) -> None:
    with contextlib.ExitStack() as pending:
        for number in range(MAX_PENDING):
            pending.enter_context(attempts.attempt({str(number): 1}))
        with pytest.raises(TooManyAttempts), attempts.attempt({HERE: 1}):
            pass
    with attempts.attempt({HERE: 1}):
        pass


def test_memory_is_bounded(attempts: SignInAttempts, clock: Clock) -> None:
    fail(attempts, {HERE: 2})
    for number in range(MAX_NETWORKS):
        fail(attempts, {str(number): 2})  # locks nobody out: a warning each would take a minute
    assert len(attempts._failures) == MAX_NETWORKS
    clock.now += WINDOW_S + 1
    fail(attempts, {THERE: 1})
    assert list(attempts._failures) == [THERE]


@pytest.mark.parametrize(
    ("address", "network"),
    [
        ("203.0.113.5", "203.0.113.5"),
        ("2001:db8:1:2:aaaa::1", "2001:db8:1:2::/64"),
        ("2001:db8:1:2:bbbb::7", "2001:db8:1:2::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        ("::ffff:203.0.113.5", "203.0.113.5"),
        ("x" * 900_000, "unknown"),
        ("", "unknown"),
    ],
)
def test_addresses_that_one_client_has_at_will_are_one_network(address: str, network: str) -> None:
    assert network_of(address) == network
