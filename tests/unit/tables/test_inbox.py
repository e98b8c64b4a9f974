"""How what is new in an inbox is cut into what is pushed."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from chat_streams.model.position import Position
from tables.inbox import Appended

FORMER = Position.of(1, 6, 2)


@given(st.lists(st.integers(1, 50), max_size=40), st.integers(1, 120))
def test_pages_hold_all_in_order_and_leave_no_gap(sizes: list[int], limit: int) -> None:
    positions = [Position.of(1, 7 + n // 3, n % 3) for n in range(len(sizes))]
    objects = [bytes([65 + n]) * size for n, size in enumerate(sizes)]
    until = Position.of(1, 99, 0)  # a retry came last
    pages = list(Appended(FORMER, until, positions, objects, 0, 1).pages(limit))
    assert [o for page in pages for o in page.messages.split(b",")] == objects
    assert [page.after for page in pages] == [FORMER, *(page.until for page in pages[:-1])][: len(pages)]
    assert not pages or pages[-1].until == until
    for page in pages:
        assert len(page.messages) <= limit or page.count == 1
        assert page.count == page.messages.count(b",") + 1
        assert page.first is not None
        assert page.after < page.first <= page.until
    # No smaller than they must be.
    for page, following in pairwise(pages):
        assert len(page.messages) + 1 + len(following.messages.split(b",")[0]) > limit
