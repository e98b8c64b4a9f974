"""The token buckets: what passes, when, and that a user has one limiter only."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.state.rate_limit import Bucket, RateLimiter, RateLimiters, Rates

RATES = Rates(1, 3, 1_000, 256 * 1024, 1, 2)


def test_a_burst_passes_at_once_and_then_the_rate() -> None:
    bucket = Bucket(rate=10, burst=5, now=0)
    for _ in range(5):
        assert bucket.wait(1, 0) == 0
        bucket.take(1)
    assert bucket.wait(1, 0) == pytest.approx(0.1)
    assert bucket.wait(1, 0.1) == 0


def test_who_comes_back_when_told_is_let_in() -> None:
    bucket = Bucket(rate=100, burst=1_000, now=0)
    bucket.take(1_000)
    wait = bucket.wait(1, 0)
    # Not for one message, but for a tenth of the burst.
    assert wait == pytest.approx(1.0)
    assert bucket.wait(1, 0.5) == pytest.approx(0.5)
    assert bucket.wait(1, wait) == 0


def test_more_than_the_burst_needs_a_full_bucket() -> None:
    bucket = Bucket(rate=10, burst=5, now=0)
    assert bucket.wait(50, 0) == 0
    bucket.take(50)
    assert bucket.wait(1, 0) == pytest.approx(4.6)


@given(st.lists(st.tuples(st.floats(0, 3), st.integers(1, 20)), max_size=60))
def test_never_more_than_the_burst_and_the_rate(steps: list[tuple[float, int]]) -> None:
    rate, burst = 7.0, 20
    bucket = Bucket(rate, burst, 0)
    now = passed = 0.0
    for pause, amount in steps:
        now += pause
        wait = bucket.wait(amount, now)
        if not wait:
            bucket.take(amount)
            passed += amount
        assert passed <= burst + rate * now + 1e-6
        assert wait <= burst / rate


def test_messages_and_bytes_are_limited_each() -> None:
    many, large = RateLimiter(RATES, 0), RateLimiter(RATES, 0)
    assert [bool(many.send(10, 0)) for _ in range(4)] == [False, False, False, True]
    assert [bool(large.send(200 * 1024, 0)) for _ in range(2)] == [False, True]
    # What did not pass took nothing.
    assert large.send(50 * 1024, 600) == 0


def test_connects_are_limited_by_themselves() -> None:
    limiter = RateLimiter(RATES, 0)
    for _ in range(3):
        limiter.send(1, 0)
    assert [bool(limiter.connect(0)) for _ in range(3)] == [False, False, True]
    assert limiter.connect(1) == 0


def test_a_user_has_one_limiter_and_the_idlest_is_forgotten() -> None:
    limiters = RateLimiters(RATES, most=2)
    alice, bob = limiters.of("alice", 0), limiters.of("bob", 0)
    assert limiters.of("alice", 1) is alice
    limiters.of("carla", 1)
    assert limiters.of("alice", 1) is alice
    assert limiters.of("bob", 1) is not bob


def test_careful_looks_take_of_a_users_bytes() -> None:
    limiter = RateLimiter(RATES, 0)
    assert limiter.look(32 * 1024, 0) == 0
    # The bucket is empty, and a tenth of it has to be there again.
    assert limiter.look(1, 0) == pytest.approx(26.2144)
    assert limiter.send(1, 0) > 0
    assert limiter.look(1, 27) == 0
