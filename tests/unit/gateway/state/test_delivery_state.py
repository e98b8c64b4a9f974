from __future__ import annotations

import itertools
import json
from typing import Any, NamedTuple

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from chat_streams.model.position import ORIGIN, Position
from chat_streams.model.records import FIRST_REQUEST, PUSH, Delivery, Missed
from gateway.state.delivery_state import (
    FIRST_TIMEOUT,
    LONGEST_TIMEOUT,
    DeliveryState,
    InvalidAck,
    Limits,
    PageRequest,
    RegistrationDue,
)

CONNECTION = b"c" * 16
LIMITS = Limits(window=8, window_bytes=100_000, page=4, page_bytes=50_000)


def at(offset: int, place: int = 0) -> Position:
    return Position.of(1, offset, place)


def json_of(position: Position, size: int = 0) -> bytes:
    return b'{"pos":"%b","body":"%b"}' % (str(position).encode(), b"x" * size)


def delivery(after: Position, until: Position, *held: Position, request: int = PUSH) -> Delivery:
    objects = b",".join(json_of(p) for p in held)
    first = held[0] if held else None
    return Delivery("bob", CONNECTION, 7, request, after, until, first, len(held), objects)


def missed(after: Position, until: Position, request: int = PUSH) -> Missed:
    return Missed("bob", CONNECTION, 7, request, after, until)


def connection(cursor: Position = ORIGIN, limits: Limits = LIMITS, jitter: float = 1.0) -> DeliveryState:
    return DeliveryState(cursor, limits, 0.0, lambda: jitter)


def registered(cursor: Position = ORIGIN, limits: Limits = LIMITS, jitter: float = 1.0) -> DeliveryState:
    """A connection whose first page has come, empty, and which is registered."""
    state = connection(cursor, limits, jitter)
    state.on_delivery(delivery(cursor, cursor, request=FIRST_REQUEST), 0.0)
    state.on_registered(cursor)
    return state


def decoded(frames: list[bytes]) -> list[Any]:
    return [json.loads(frame) for frame in frames]


def request_of(state: DeliveryState, now: float) -> PageRequest:
    due = state.due(now)
    assert isinstance(due, PageRequest)
    assert state.due(now) is None
    return due


def next_due(state: DeliveryState) -> float:
    found = state.next_due()
    assert found is not None
    return found


# Forwarding: the contiguous continuation and nothing else


def test_the_continuation_is_forwarded_as_it_is() -> None:
    state = connection(at(3))
    frames = decoded(state.on_delivery(delivery(at(2), at(9), at(4), at(7)), 0.0))
    assert frames == [
        {
            "type": "messages",
            "after": str(at(3)),
            "until": str(at(9)),
            "messages": [{"pos": str(at(p)), "body": ""} for p in (4, 7)],
        }
    ]
    assert state.forwarded == at(9)


@pytest.mark.parametrize(
    ("after", "until", "held"),
    [
        (2, 5, [4, 5]),  # there already
        (2, 9, [4, 8]),  # overlaps
        (6, 9, [8]),  # leaves a gap
    ],
)
def test_anything_else_is_news_only(after: int, until: int, held: list[int]) -> None:
    state = connection(at(5))
    assert state.on_delivery(delivery(at(after), at(until), *map(at, held)), 0.0) == []
    assert state.forwarded == at(5)
    assert state.target == max(ORIGIN, at(until) if until > 5 else ORIGIN)


def test_positions_are_not_compared_as_texts() -> None:
    state = connection(Position(9, 0))
    assert len(state.on_delivery(delivery(Position(9, 0), Position(10, 0), Position(10, 0)), 0.0)) == 1
    assert state.on_delivery(delivery(Position(8, 0), Position(9, 5), Position(9, 5)), 0.0) == []


def test_an_empty_range_moves_on_without_a_frame_and_the_chain_still_fits() -> None:
    state = connection(at(3))
    assert state.on_delivery(delivery(at(3), at(6)), 0.0) == []
    (frame,) = decoded(state.on_delivery(delivery(at(6), at(8), at(7)), 0.0))
    assert (frame["after"], frame["until"]) == (str(at(3)), str(at(8)))


def test_an_empty_range_behind_a_gap_moves_nothing() -> None:
    state = connection(at(3))
    assert state.on_delivery(delivery(at(4), at(6)), 0.0) == []
    assert (state.forwarded, state.target) == (at(3), at(6))


def test_a_missed_range_is_told_once_and_in_the_chain() -> None:
    state = connection(at(3))
    assert state.on_missed(missed(at(4), at(6)), 0.0) == []
    assert decoded(state.on_missed(missed(at(2), at(6)), 0.0)) == [
        {"type": "missed", "after": str(at(3)), "until": str(at(6))}
    ]
    assert state.on_missed(missed(at(3), at(6)), 0.0) == []
    (frame,) = decoded(state.on_delivery(delivery(at(6), at(8), at(7)), 0.0))
    assert frame["after"] == str(at(6))


# The window


@pytest.mark.parametrize(
    "limits", [Limits(2, 10_000, 10, 10_000), Limits(10, 2 * len(json_of(at(1))), 10, 10_000)], ids=["count", "bytes"]
)
def test_a_closed_window_stops_everything_until_an_acknowledgement(limits: Limits) -> None:
    state = registered(limits=limits)
    assert len(state.on_delivery(delivery(ORIGIN, at(1), at(1)), 0.0)) == 1
    assert len(state.on_delivery(delivery(at(1), at(2), at(2)), 0.0)) == 1
    assert state.on_delivery(delivery(at(2), at(3), at(3)), 0.0) == []
    assert state.on_missed(missed(at(2), at(4)), 0.0) == []
    assert (state.forwarded, state.target) == (at(2), at(4))
    assert state.due(1_000.0) is None
    assert state.next_due() is None
    assert state.acknowledge(at(2))
    assert request_of(state, 1_000.0).after == at(2)


def test_one_delivery_may_overshoot_the_window() -> None:
    state = registered(limits=Limits(2, 10_000, 10, 10_000))
    assert len(state.on_delivery(delivery(ORIGIN, at(1), at(1)), 0.0)) == 1
    assert len(state.on_delivery(delivery(at(1), at(5), *map(at, range(2, 6))), 0.0)) == 1
    state.on_inbox_advanced(at(9))
    assert state.due(1_000.0) is None
    state.acknowledge(at(5))
    assert request_of(state, 1_000.0).limit == 2


def test_a_partial_acknowledgement_frees_what_it_covers_whole() -> None:
    state = registered(limits=Limits(4, 10_000, 4, 10_000))
    state.on_delivery(delivery(ORIGIN, at(2), at(1), at(2)), 0.0)
    state.on_delivery(delivery(at(2), at(4), at(3), at(4)), 0.0)
    assert not state.window_open
    state.acknowledge(at(1))
    assert not state.window_open
    state.acknowledge(at(3))
    assert state.window_open
    assert state.unacknowledged_bytes == len(json_of(at(3))) * 2 + 1
    state.acknowledge(at(4))
    assert state.unacknowledged_bytes == 0


def test_a_request_is_limited_by_what_is_left_of_the_window() -> None:
    state = registered(limits=Limits(6, 1_000, 4, 900))
    state.on_delivery(delivery(ORIGIN, at(4), *map(at, range(1, 5))), 0.0)
    state.on_inbox_advanced(at(9))
    request = request_of(state, 0.0)
    assert (request.after, request.limit) == (at(4), 2)
    assert request.limit_bytes == min(900, 1_000 - state.unacknowledged_bytes)


def test_the_inbox_is_not_requested_a_message_at_a_time() -> None:
    state = registered(limits=Limits(8, 100_000, 8, 100_000))
    for i in range(8):
        state.on_delivery(delivery(at(i) if i else ORIGIN, at(i + 1), at(i + 1)), 0.0)
    state.on_inbox_advanced(at(20))
    state.acknowledge(at(1))
    assert state.due(1_000.0) is None
    state.acknowledge(at(2))
    assert request_of(state, 1_000.0).limit == 2


def test_an_acknowledgement_above_what_was_forwarded_is_refused() -> None:
    state = connection(at(3))
    state.on_delivery(delivery(at(3), at(5), at(5)), 0.0)
    with pytest.raises(InvalidAck, match=str(at(5, 1))):
        state.acknowledge(at(5, 1))
    assert state.acked == at(3)
    assert state.acknowledge(at(5))
    assert not state.acknowledge(at(5))
    assert not state.acknowledge(at(4))
    assert state.acked == at(5)


def test_an_acknowledgement_knows_when_the_latest_of_it_was_forwarded() -> None:
    state = registered()
    assert state.acked_forwarded_at is None
    for now, (after, until) in enumerate([(ORIGIN, at(2)), (at(2), at(4)), (at(4), at(6))], start=1):
        state.on_delivery(delivery(after, until, at(until.offset - 1), until), float(now))
    times: list[float | None] = []
    for position in (at(1), at(2), at(4), at(5), at(6)):
        state.acknowledge(position)
        times.append(state.acked_forwarded_at)
    assert times == [1.0, 1.0, 2.0, 3.0, 3.0]
    # Nothing was forwarded of what had left the inbox.
    state.on_missed(missed(at(6), at(8)), 4.0)
    state.acknowledge(at(8))
    assert state.acked_forwarded_at is None


def test_an_acknowledgement_of_one_delivery_and_a_part_of_the_next_was_forwarded_with_the_next() -> None:
    state = registered()
    state.on_delivery(delivery(ORIGIN, at(2), at(1), at(2)), 1.0)
    state.on_delivery(delivery(at(2), at(4), at(3), at(4)), 2.0)
    state.acknowledge(at(3))
    assert state.acked_forwarded_at == 2.0


def test_an_acknowledgement_travels_at_once_when_half_the_window_is_used() -> None:
    state = registered(limits=Limits(8, 100_000, 8, 100_000))
    state.on_delivery(delivery(ORIGIN, at(3), *map(at, range(1, 4))), 0.0)
    assert not state.is_half_used
    state.on_delivery(delivery(at(3), at(4), at(4)), 0.0)
    assert state.is_half_used


# Requesting pages


def test_nothing_is_requested_while_all_is_forwarded() -> None:
    state = registered(at(3))
    assert state.due(1_000.0) is None
    assert state.next_due() is None
    state.on_inbox_advanced(at(3))
    assert state.due(1_000.0) is None


def test_the_first_page_is_waited_for_and_then_requested() -> None:
    state = connection(at(3))
    state.on_registered(at(9))
    assert state.due(FIRST_TIMEOUT - 0.01) is None
    assert next_due(state) == FIRST_TIMEOUT
    request = request_of(state, FIRST_TIMEOUT)
    assert (request.after, request.limit) == (at(3), LIMITS.page)
    assert request.request > FIRST_REQUEST


def test_an_answer_that_advanced_is_followed_by_the_next_request_at_once() -> None:
    state = connection()
    state.on_registered(at(9))
    state.on_delivery(delivery(ORIGIN, at(2), at(1), at(2), request=FIRST_REQUEST), 0.1)
    assert request_of(state, 0.1).after == at(2)


def test_an_answer_that_advanced_nothing_is_not_followed_by_a_request_at_once() -> None:
    state = registered()
    state.on_inbox_advanced(at(9))
    first = request_of(state, 0.0)
    state.on_delivery(delivery(ORIGIN, ORIGIN, request=first.request), 0.1)
    assert state.due(0.1) is None
    assert next_due(state) >= 0.1 + FIRST_TIMEOUT
    second = request_of(state, next_due(state))
    assert second.request > first.request


def test_a_message_stored_right_behind_the_first_page_is_requested_at_once() -> None:
    state = connection(at(3))
    state.on_delivery(delivery(at(3), at(3), request=FIRST_REQUEST), 0.1)
    state.on_registered(at(4))
    assert request_of(state, 0.1).after == at(3)


def test_one_request_at_a_time_whatever_else_arrives() -> None:
    state = registered()
    state.on_inbox_advanced(at(20))
    first = request_of(state, 0.0)
    # A push and a late page of an earlier request, both of which advance.
    state.on_delivery(delivery(ORIGIN, at(1), at(1), request=PUSH), 0.1)
    state.on_delivery(delivery(at(1), at(2), at(2), request=FIRST_REQUEST), 0.2)
    assert state.due(0.2) is None
    assert state.outstanding
    state.on_delivery(delivery(at(2), at(3), at(3), request=first.request), 0.3)
    assert request_of(state, 0.3).after == at(3)


def test_requests_back_off_within_bounds_and_begins_anew_after_an_advance() -> None:
    state = registered()
    state.on_inbox_advanced(at(9))
    now, waits = 0.0, []
    for _ in range(12):
        request = request_of(state, now)
        assert next_due(state) == now + request.timeout
        waits.append(request.timeout)
        now += request.timeout
    assert waits[0] == FIRST_TIMEOUT
    assert all(b == min(LONGEST_TIMEOUT, 2 * a) for a, b in itertools.pairwise(waits))
    assert waits[-1] == LONGEST_TIMEOUT
    state.on_delivery(delivery(ORIGIN, at(1), at(1), request=state.request), now - 1)
    assert request_of(state, now).timeout == FIRST_TIMEOUT


def test_requests_are_jittered() -> None:
    waits = []
    for jitter in (0.5, 1.0):
        state = registered(jitter=jitter)
        state.on_inbox_advanced(at(9))
        waits.append(request_of(state, 0.0).timeout)
    assert waits == [FIRST_TIMEOUT / 2, FIRST_TIMEOUT]


# Announcing


def announcements(state: DeliveryState, now: float, count: int) -> list[float]:
    times = []
    for _ in range(count):
        now = max(now, next_due(state))
        assert state.due(now) == RegistrationDue()
        assert state.due(now) is None
        times.append(now)
    return times


def assert_backs_off(times: list[float]) -> None:
    waits = [b - a for a, b in itertools.pairwise(times)]
    assert all(b == min(LONGEST_TIMEOUT, 2 * a) for a, b in itertools.pairwise(waits))
    assert waits[-1] == LONGEST_TIMEOUT


def test_without_an_answer_of_the_registry_it_is_told_again_with_backoff() -> None:
    state = connection()
    assert state.due(FIRST_TIMEOUT - 0.01) is None
    times = announcements(state, 0.0, 10)
    assert times[0] == FIRST_TIMEOUT
    assert_backs_off(times)
    state.on_registered(ORIGIN)
    assert state.next_due() is None
    assert state.due(1e9) is None


def test_a_registry_that_must_hear_again_is_told_until_it_answers() -> None:
    state = registered()
    state.on_unregistered(1_000.0)
    times = announcements(state, 1_000.0, 10)
    assert times[0] == 1_000.0 + FIRST_TIMEOUT
    assert_backs_off(times)
    state.on_registered(ORIGIN)
    assert state.next_due() is None


def test_announcing_does_not_wait_for_the_window_nor_hold_up_requests() -> None:
    state = connection(limits=Limits(1, 10_000, 1, 10_000))
    state.on_delivery(delivery(ORIGIN, at(1), at(1), request=FIRST_REQUEST), 0.0)
    state.on_inbox_advanced(at(9))
    assert not state.window_open
    assert state.due(FIRST_TIMEOUT) == RegistrationDue()
    state.acknowledge(at(1))
    assert request_of(state, FIRST_TIMEOUT).after == at(1)


# Caught up


def caught_up(position: Position) -> dict[str, str]:
    return {"type": "caught_up", "pos": str(position)}


def test_an_empty_inbox_is_caught_up_at_once() -> None:
    assert decoded(connection(at(3)).on_registered(at(3))) == [caught_up(at(3))]
    assert decoded(connection(at(3)).on_registered(ORIGIN)) == [caught_up(at(3))]


def test_caught_up_comes_behind_the_last_message_of_before_and_once() -> None:
    state = connection()
    assert state.on_registered(at(4)) == []
    assert len(state.on_delivery(delivery(ORIGIN, at(2), at(2), request=FIRST_REQUEST), 0.0)) == 1
    frames = decoded(state.on_delivery(delivery(at(2), at(6), at(4), at(6)), 0.0))
    assert [f["type"] for f in frames] == ["messages", "caught_up"]
    assert frames[1] == caught_up(at(6))
    assert [f["type"] for f in decoded(state.on_delivery(delivery(at(6), at(7), at(7)), 0.0))] == ["messages"]
    assert state.on_registered(at(9)) == []
    state.on_unregistered(1.0)
    assert state.on_registered(at(9)) == []
    assert state.on_registered(at(7)) == []


def test_what_comes_later_does_not_put_caught_up_off() -> None:
    state = connection()
    state.on_registered(at(2))
    state.on_registered(at(9))
    state.on_inbox_advanced(at(12))
    frames = decoded(state.on_delivery(delivery(ORIGIN, at(2), at(2), request=FIRST_REQUEST), 0.0))
    assert [f["type"] for f in frames] == ["messages", "caught_up"]


def test_caught_up_also_by_an_empty_or_a_missed_range() -> None:
    state = connection()
    state.on_registered(at(2))
    assert decoded(state.on_delivery(delivery(ORIGIN, at(3), request=FIRST_REQUEST), 0.0)) == [caught_up(at(3))]
    state = connection()
    state.on_registered(at(2))
    frames = decoded(state.on_missed(missed(ORIGIN, at(2), request=FIRST_REQUEST), 0.0))
    assert [f["type"] for f in frames] == ["missed", "caught_up"]


def test_nothing_is_caught_up_before_the_registry_answered() -> None:
    state = connection()
    assert [f["type"] for f in decoded(state.on_delivery(delivery(ORIGIN, at(2), at(2)), 0.0))] == ["messages"]
    assert decoded(state.on_registered(at(2))) == [caught_up(at(2))]


# Everything at once


class Kept(NamedTuple):
    """A message in the model's inbox."""

    position: Position
    json: bytes


class Inbox:
    """The offline store, as a model of its answers beside ``tables/lua/inbox.lua``."""

    def __init__(self) -> None:
        self.top = self.floor = ORIGIN
        self.log: list[Kept] = []
        self.gone: set[Position] = set()
        self._offset = 0

    def append(self, gap: int, sizes: list[int], behind: int) -> tuple[Position, list[Kept]]:
        """Append messages; ``behind`` more of the record were for others or sent again."""
        former = self.top
        self._offset += 1 + gap
        added = [Kept(p := at(self._offset, gap + i), json_of(p, size)) for i, size in enumerate(sizes)]
        self.log += added
        self.top = at(self._offset, gap + len(sizes) + behind)
        return former, added

    def expire(self, until: Position) -> None:
        self.gone.update(m.position for m in self.log if m.position <= until)
        self.floor = max(self.floor, until)

    def read(self, after: Position, limit: int, limit_bytes: int) -> tuple[Position, list[Kept] | None]:
        """The end of a page and its messages, ``None`` for a missed range."""
        if after < self.floor:
            return self.floor, None
        page: list[Kept] = []
        lost: Position | None = None
        for kept in self.log:
            if kept.position <= after:
                continue
            if kept.position in self.gone:
                if page:
                    return page[-1].position, page
                lost = kept.position
            elif lost is not None:
                return lost, None
            elif page and sum(len(m.json) for m in page) + len(kept.json) > limit_bytes:
                return page[-1].position, page
            else:
                page.append(kept)
                if len(page) == limit:
                    return kept.position, page
        if lost is not None:
            return lost, None
        return max(after, self.top), page


class Unacknowledged(NamedTuple):
    until: Position
    messages: int
    size: int


indexes = st.integers(0, 1 << 16)


class TwoProducers(RuleBasedStateMachine):
    """A connection between an inbox, messaging and notification that may lose, repeat, delay and swap, and a client."""

    def __init__(self) -> None:
        super().__init__()
        self.inbox = Inbox()
        self.now = 0.0
        self.state: DeliveryState
        self.limits: Limits
        self.flying: list[Delivery | Missed | Position] = []
        self.requests: list[PageRequest] = []
        self.names = 0
        # What the client knows:
        self.until = ORIGIN
        self.seen: list[Position] = []
        self.held: list[Unacknowledged] = []
        self.acked = ORIGIN
        self.caught_up: Position | None = None
        self.wanted_caught_up: Position | None = None

    @initialize(
        stored=st.lists(st.tuples(st.integers(0, 2), st.lists(st.integers(0, 40), max_size=3)), max_size=4),
        cursor=indexes,
        window=st.integers(1, 6),
        page=st.integers(1, 4),
        window_bytes=st.sampled_from([60, 200, 10_000]),
        jitter=st.sampled_from([0.5, 1.0]),
    )
    def connect(
        self,
        stored: list[tuple[int, list[int]]],
        cursor: int,
        window: int,
        page: int,
        window_bytes: int,
        jitter: float,
    ) -> None:
        for gap, sizes in stored:
            self.inbox.append(gap, sizes, gap)
        self.until = self.acked = self._pick(cursor)
        self.limits = Limits(window, window_bytes, page, window_bytes // 2)
        self.state = DeliveryState(self.until, self.limits, self.now, lambda: jitter)
        self.requests = [PageRequest(FIRST_REQUEST, self.until, page, window_bytes // 2, FIRST_TIMEOUT)]

    def _pick(self, index: int) -> Position:
        """Some position up to the top: of a message, right before or behind one."""
        places = {ORIGIN, self.inbox.floor, self.inbox.top}
        for kept in self.inbox.log:
            entry, place = kept.position
            places |= {kept.position, Position(entry, place + 1), Position(entry - 1, 99)}
        ordered = sorted(p for p in places if p <= self.inbox.top)
        return ordered[index % len(ordered)]

    # The producers

    @rule(gap=st.integers(0, 2), sizes=st.lists(st.integers(0, 40), min_size=1, max_size=4), behind=st.integers(0, 2))
    def a_push(self, gap: int, sizes: list[int], behind: int) -> None:
        former, added = self.inbox.append(gap, sizes, behind)
        self._fly(former, self.inbox.top, added, PUSH)

    @rule(gap=st.integers(0, 2), sizes=st.lists(st.integers(0, 40), min_size=1, max_size=4))
    def a_push_that_arrives_in_time(self, gap: int, sizes: list[int]) -> None:
        self.a_push(gap, sizes, 0)
        self._receive(self.flying.pop())

    @rule(gap=st.integers(0, 2))
    def nothing_new_in_a_record(self, gap: int) -> None:
        self.inbox.append(gap, [], 1)
        self.flying.append(self.inbox.top)

    @rule(request=indexes)
    def a_page_for_some_request(self, request: int) -> None:
        self._answer(self.requests[request % len(self.requests)])

    @rule(a=indexes, b=indexes, request=indexes)
    def any_part_of_the_inbox(self, a: int, b: int, request: int) -> None:
        after, until = sorted((self._pick(a), self._pick(b)))
        held = [m for m in self.inbox.log if after < m.position <= until]
        if not any(m.position in self.inbox.gone for m in held):
            self._fly(after, until, held, request % (self.state.request + 1))

    @precondition(lambda self: self.inbox.log)
    @rule(which=indexes, request=indexes)
    def a_part_without_messages(self, which: int, request: int) -> None:
        index = which % len(self.inbox.log)
        after, _ = self.inbox.log[index]
        following = self.inbox.log[index + 1].position if index + 1 < len(self.inbox.log) else self.inbox.top
        until = min(Position(after.entry, after.index + 1), following)
        self._fly(after, until, [m for m in self.inbox.log if m.position == until], request % (self.state.request + 1))

    @rule(until=indexes)
    def some_leave_the_inbox(self, until: int) -> None:
        self.inbox.expire(self._pick(until))

    @rule(which=indexes)
    def one_goes_to_history_only(self, which: int) -> None:
        if self.inbox.log:
            self.inbox.gone.add(self.inbox.log[which % len(self.inbox.log)].position)

    def _answer(self, request: PageRequest) -> None:
        until, held = self.inbox.read(request.after, request.limit, request.limit_bytes)
        self._fly(request.after, until, held, request.request)

    def _fly(self, after: Position, until: Position, held: list[Kept] | None, request: int) -> None:
        if held is None:
            self.flying.append(missed(after, until, request))
        else:
            objects = b",".join(m.json for m in held)
            first = held[0].position if held else None
            self.flying.append(Delivery("bob", CONNECTION, 7, request, after, until, first, len(held), objects))

    # The way to the gateway

    @precondition(lambda self: self.flying)
    @rule(which=indexes, again=st.booleans())
    def one_arrives(self, which: int, again: bool) -> None:
        index = which % len(self.flying)
        self._receive(self.flying[index] if again else self.flying.pop(index))

    @precondition(lambda self: self.flying)
    @rule()
    def the_oldest_arrives(self) -> None:
        self._receive(self.flying.pop(0))

    @precondition(lambda self: self.flying)
    @rule()
    def the_newest_arrives(self) -> None:
        self._receive(self.flying.pop())

    @precondition(lambda self: self.flying)
    @rule(which=indexes)
    def one_is_lost(self, which: int) -> None:
        del self.flying[which % len(self.flying)]

    @rule(top=indexes)
    def the_registry_answers(self, top: int) -> None:
        position = self._pick(top)
        if self.wanted_caught_up is None:
            self.wanted_caught_up = position
        self._show(self.state.on_registered(position))
        self._drain()

    @rule()
    def another_keeper_of_the_registry(self) -> None:
        self.state.on_unregistered(self.now)
        self._drain()

    def _receive(self, item: Delivery | Missed | Position) -> None:
        is_open = self._open()
        before = self.state.forwarded
        if isinstance(item, Position):
            self.state.on_inbox_advanced(item)
            frames = []
        elif isinstance(item, Missed):
            frames = self.state.on_missed(item, self.now)
        else:
            frames = self.state.on_delivery(item, self.now)
        kinds = [f["type"] for f in decoded(frames)]
        assert is_open or ("messages" not in kinds and "missed" not in kinds), "forwarded with a closed window"
        assert self.state.forwarded >= before
        until = item if isinstance(item, Position) else item.until
        assert max(self.state.target, self.state.forwarded) >= until, "news are forgotten"
        self._show(frames)
        self._drain()

    def _drain(self) -> None:
        for _ in range(3):
            due = self.state.due(self.now)
            if due is None:
                break
            if isinstance(due, PageRequest):
                self._check_request(due)
                self.requests.append(due)
            else:
                self.names += 1
        else:
            raise AssertionError("it never has enough")
        following = self.state.next_due()
        assert following is None or self.now < following <= self.now + LONGEST_TIMEOUT

    def _check_request(self, request: PageRequest) -> None:
        assert self._open()
        assert request.after == self.state.forwarded < self.state.target
        assert 1 <= request.limit <= min(self.limits.page, self.limits.window - sum(u.messages for u in self.held))
        assert 1 <= request.limit_bytes <= self.limits.window_bytes - sum(u.size for u in self.held)
        assert request.request > max(a.request for a in self.requests)
        assert 0 < request.timeout <= LONGEST_TIMEOUT

    # The client

    def _open(self) -> bool:
        count, size = sum(u.messages for u in self.held), sum(u.size for u in self.held)
        return count < self.limits.window and size < self.limits.window_bytes

    def _show(self, frames: list[bytes]) -> None:
        for frame in frames:
            fields = json.loads(frame)
            if fields["type"] == "caught_up":
                assert self.caught_up is None, "caught up twice"
                assert self.wanted_caught_up is not None
                self.caught_up = Position.parse(fields["pos"])
                assert self.caught_up >= self.wanted_caught_up
                missing = [m for m in self.inbox.log if self.until < m.position <= self.wanted_caught_up]
                assert not missing, "caught up before the last message"
                continue
            after, until = Position.parse(fields["after"]), Position.parse(fields["until"])
            assert after == self.until < until, "the chain is broken"
            stored = [m for m in self.inbox.log if after < m.position <= until]
            if fields["type"] == "missed":
                assert all(m.position in self.inbox.gone for m in stored), "missed is what is still there"
            else:
                shown = [Position.parse(m["pos"]) for m in fields["messages"]]
                assert shown == [m.position for m in stored], "not all of the range, in order, once"
                self.seen += shown
                self.held.append(Unacknowledged(until, len(stored), len(b",".join(m.json for m in stored))))
            self.until = until

    @rule(which=indexes)
    def acknowledge(self, which: int) -> None:
        self._acknowledge(min(self.until, self._pick(which)))

    @rule()
    def acknowledge_all(self) -> None:
        self._acknowledge(self.until)

    @rule(which=indexes)
    def acknowledge_too_much(self, which: int) -> None:
        position = self._pick(which)
        if position > self.state.forwarded:
            with pytest.raises(InvalidAck):
                self.state.acknowledge(position)

    def _acknowledge(self, position: Position) -> None:
        assert self.state.acknowledge(position) == (position > self.acked)
        self.acked = max(self.acked, position)
        self.held = [u for u in self.held if u.until > self.acked]
        self._drain()

    @rule(seconds=st.sampled_from([0.01, 0.5, FIRST_TIMEOUT, LONGEST_TIMEOUT]))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds
        self._drain()

    @precondition(lambda self: self.state.next_due() is not None)
    @rule()
    def time_passes_until_something_is_due(self) -> None:
        requests, names = len(self.requests), self.names
        self.now = next_due(self.state)
        self._drain()
        assert (len(self.requests), self.names) != (requests, names), "woken for nothing"

    @invariant()
    def positions_are_seen_once_and_in_order(self) -> None:
        assert all(a < b for a, b in itertools.pairwise(self.seen))

    @invariant()
    def nothing_waits_for_ever(self) -> None:
        if self.state.forwarded < self.state.target and not self.held:
            assert self.state.next_due() is not None

    def teardown(self) -> None:
        # From here on the client acknowledges and the store answers; the pushes are lost for good.
        if not self.requests:
            return
        self.flying.clear()
        self.acknowledge_all()
        target = max(self.state.target, self.state.forwarded)
        rounds = 2 * len(self.inbox.log) + 8
        while self.state.next_due() is not None:
            rounds -= 1
            assert rounds, "it does not get there"
            before, names = len(self.requests), self.names
            self.time_passes_until_something_is_due()
            while len(self.requests) > before:
                before = len(self.requests)
                self._answer(self.requests[-1])
                self._receive(self.flying.pop())
                self.acknowledge_all()
            if self.names > names:
                self.the_registry_answers(0)
        assert self.state.forwarded >= target
        waiting = [m.position for m in self.inbox.log if self.until < m.position <= self.state.forwarded]
        assert not waiting, "skipped without a word"
        if self.wanted_caught_up is not None:
            assert self.caught_up is not None
        self.positions_are_seen_once_and_in_order()


TestTwoProducers = TwoProducers.TestCase
TestTwoProducers.settings = settings(deadline=None, max_examples=100, stateful_step_count=40)


def test_a_page_there_was_no_room_for_is_requested_as_soon_as_there_is() -> None:
    state = connection(ORIGIN)
    state.on_registered(at(9))
    state.on_delivery(delivery(ORIGIN, at(1), at(1), request=state.request), 0.0)
    assert isinstance(state.due(1.0), PageRequest)
    state.postpone_request()
    assert state.due(1.1) is None
    state.resume_requests(1.2)
    assert isinstance(state.due(1.2), PageRequest)
    # Nothing was asked in vain, so the timeout has not grown.
    assert state.next_due() == pytest.approx(1.2 + FIRST_TIMEOUT)


def test_what_came_while_the_first_page_was_read_is_requested_at_once() -> None:
    state = connection(ORIGIN)
    state.on_inbox_advanced(at(5))
    assert state.due(0.1) is None
    # The page was read before: it is empty, and that is no reason to wait.
    state.on_delivery(delivery(ORIGIN, ORIGIN, request=state.request), 0.2)
    assert isinstance(state.due(0.2), PageRequest)
