"""Failed sign-ins: counted per key, within a window, also while they are pending."""

from __future__ import annotations

import contextlib

import pytest
from atlas_review.auth import AttemptKey, SignInAttempts
from atlas_review.auth.sign_in_attempts import MAX_KEYS, WINDOW_S
from atlas_review.errors import NotSignedIn, TooManyAttempts

NAME: AttemptKey = ("name", "ann")
ADDRESS: AttemptKey = ("address", "203.0.113.5")


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


def fail(attempts: SignInAttempts, limits: dict[AttemptKey, int]) -> None:
    with contextlib.suppress(NotSignedIn), attempts.attempt(limits):
        raise NotSignedIn({})


def test_a_key_is_locked_out_until_its_oldest_failure_leaves_the_window(
    attempts: SignInAttempts, clock: Clock
) -> None:
    for _ in range(2):
        fail(attempts, {NAME: 2})
        clock.now += 60
    with pytest.raises(TooManyAttempts) as caught, attempts.attempt({NAME: 2}):
        pass
    assert caught.value.retry_after_s == WINDOW_S - 120
    clock.now += caught.value.retry_after_s
    with attempts.attempt({NAME: 2}):
        pass


def test_each_key_counts_for_itself(attempts: SignInAttempts) -> None:
    fail(attempts, {NAME: 5, ADDRESS: 1})
    with attempts.attempt({NAME: 5}):
        pass
    with pytest.raises(TooManyAttempts), attempts.attempt({("name", "bob"): 5, ADDRESS: 1}):
        pass


def test_only_a_refused_sign_in_is_a_failure(attempts: SignInAttempts) -> None:
    with attempts.attempt({NAME: 1}):
        pass
    with contextlib.suppress(RuntimeError), attempts.attempt({NAME: 1}):
        raise RuntimeError
    with attempts.attempt({NAME: 1}):
        pass


def test_memory_is_bounded(attempts: SignInAttempts) -> None:
    fail(attempts, {NAME: 1})
    for number in range(MAX_KEYS):
        fail(attempts, {("name", str(number)): 1})
    with attempts.attempt({NAME: 1}):  # its failure was the oldest
        pass
