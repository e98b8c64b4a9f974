"""The order barrier: what waits behind a refused message, for how long, and for how many recipients at most."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from gateway.state.order_barrier import HELD_SECONDS, OrderBarrier


def test_a_message_waits_until_the_first_refused_one_is_sent_again() -> None:
    barrier = OrderBarrier(10)
    barrier.refuse("bob", "1", 0)
    barrier.refuse("bob", "2", 0)
    assert barrier.blocker("bob", "2", 0) == "1"
    assert barrier.blocker("bob", "3", HELD_SECONDS) == "1"
    assert barrier.blocker("bob", "1", HELD_SECONDS) is None
    assert barrier.blocker("bob", "2", HELD_SECONDS) is None
    assert len(barrier) == 0


def test_messages_to_others_do_not_wait() -> None:
    barrier = OrderBarrier(10)
    barrier.refuse("bob", "1", 0)
    assert barrier.blocker("carla", "2", 0) is None
    assert len(barrier) == 1


def test_a_message_does_not_wait_longer_than_so_long() -> None:
    barrier = OrderBarrier(10)
    barrier.refuse("bob", "1", 0)
    assert barrier.blocker("bob", "2", HELD_SECONDS + 0.1) is None
    assert len(barrier) == 0


def test_a_refusal_after_that_time_holds_back_anew() -> None:
    barrier = OrderBarrier(10)
    barrier.refuse("bob", "1", 0)
    barrier.refuse("bob", "2", HELD_SECONDS + 1)
    assert barrier.blocker("bob", "3", 2 * HELD_SECONDS) == "2"


def test_a_recipient_whose_time_is_over_is_forgotten_with_the_next_refusal() -> None:
    barrier = OrderBarrier(10)
    for n in range(5):
        barrier.refuse(f"user{n}", "1", n)
    barrier.refuse("bob", "2", HELD_SECONDS + 2.5)
    assert len(barrier) == 3
    assert barrier.blocker("user3", "2", HELD_SECONDS + 2.5) == "1"


def test_at_the_limit_the_recipient_refused_for_longest_is_let_through() -> None:
    barrier = OrderBarrier(3)
    for n in range(3):
        barrier.refuse(f"user{n}", f"m{n}", 0)
    # One that is remembered already takes no place more.
    barrier.refuse("user0", "more", 0)
    assert len(barrier) == 3
    barrier.refuse("user3", "m3", 0)
    assert len(barrier) == 3
    assert [barrier.blocker(f"user{n}", "later", 0) for n in range(4)] == [None, "m1", "m2", "m3"]


@given(st.lists(st.tuples(st.floats(0, 20), st.integers(0, 30)), max_size=100))
def test_never_more_recipients_than_the_limit(refusals: list[tuple[float, int]]) -> None:
    barrier, now = OrderBarrier(7), 0.0
    for pause, user in refusals:
        now += pause
        barrier.refuse(str(user), "m", now)
        assert len(barrier) <= 7
        assert barrier.blocker(str(user), "other", now) == "m"
