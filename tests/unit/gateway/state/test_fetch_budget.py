"""The budget of pages under way: what is granted, who waits, and that nobody waits twice or after leaving."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from gateway.state.fetch_budget import FetchBudget

PAGE = 100
ALICE, BOB, CARLA = b"alice", b"bob", b"carla"


def test_bytes_are_granted_until_none_are_left() -> None:
    budget = FetchBudget(250, PAGE)
    assert [budget.reserve(name, 100) for name in (ALICE, BOB, CARLA)] == [True, True, False]
    assert (budget.free, budget.waiting) == (50, 1)
    assert budget.next_in_line() is None
    budget.release(100)
    assert budget.next_in_line() == CARLA
    assert budget.next_in_line() is None
    assert budget.reserve(CARLA, 100)


def test_a_small_page_is_granted_where_a_large_one_is_not() -> None:
    budget = FetchBudget(150, PAGE)
    assert budget.reserve(ALICE, 100)
    assert budget.reserve(BOB, 50)
    assert budget.free == 0


def test_connections_come_in_the_order_in_which_they_began_to_wait() -> None:
    budget = FetchBudget(100, PAGE)
    budget.reserve(b"first", 100)
    for name in (ALICE, BOB, CARLA, ALICE):
        assert not budget.reserve(name, 100)
    budget.release(100)
    assert [budget.next_in_line() for _ in range(4)] == [ALICE, BOB, CARLA, None]


def test_a_connection_waits_once_however_often_it_asks() -> None:
    budget = FetchBudget(100, PAGE)
    budget.reserve(ALICE, 100)
    for _ in range(1_000):
        assert not budget.reserve(BOB, 100)
    assert budget.waiting == 1


def test_a_connection_that_was_granted_bytes_or_has_ended_no_longer_waits() -> None:
    budget = FetchBudget(100, PAGE)
    budget.reserve(ALICE, 100)
    budget.reserve(BOB, 100)
    budget.reserve(CARLA, 100)
    budget.forget(BOB)
    budget.forget(b"never here")
    budget.release(100)
    assert budget.reserve(CARLA, 100)
    assert budget.waiting == 0


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(1, PAGE)), max_size=80))
def test_what_is_granted_and_what_is_free_are_always_the_total(steps: list[tuple[int, int]]) -> None:
    budget, held = FetchBudget(3 * PAGE, PAGE), dict.fromkeys(range(6), 0)
    for who, size in steps:
        if held[who]:
            budget.release(held[who])
            held[who] = 0
        elif budget.reserve(bytes([who]), size):
            held[who] = size
        assert budget.free >= 0
        assert budget.free + sum(held.values()) == 3 * PAGE
        assert budget.waiting <= 6
