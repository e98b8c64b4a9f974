from __future__ import annotations

from typing import Any

import pytest

from chat_streams.model.position import Position
from chat_streams.model.records import (
    FIRST_REQUEST,
    PUSH,
    Acknowledge,
    Delivery,
    InboxAdvanced,
    UserConnected,
    UserDisconnected,
)
from chat_streams.model.redrive import Redrive
from chat_streams.operations.journey import Copy, Inbox, Journey, Letter, Name, Rules, journey_json, journeys, verdict

HOUR = 3_600_000
NOW = 100 * HOUR
NAME = Name("alice", "bob", "1")
PHONE, LAPTOP = b"p" * 16, b"l" * 16
RULES = Rules(now=NOW, sweep_ms=300_000, ttl_ms=720 * HOUR, heard_from=NOW - 2 * HOUR, sent_from=NOW - HOUR)


def copy(offset: int, at: int = NOW - 1_000, redrive: Redrive | None = None) -> Copy:
    return Copy(Position.of(1, offset, 0), 3, at, at + 5, 100, redrive)


def dead(offset: int, app: str = "messaging") -> Letter:
    return Letter(4, app, "ResponseError: WRONGTYPE", offset, NOW, NOW, None)


def connected(connection: bytes = PHONE, device: str = "phone", number: int = 1) -> UserConnected:
    return UserConnected("bob", device, connection, number, 2, 9, Position(0, 0), 100, 100, True, 0)


def journey(*copies: Copy, **found: Any) -> Journey:
    return Journey(NAME, list(copies or (copy(7),)), **found)


def fate(journey: Journey, rules: Rules = RULES) -> tuple[str, str]:
    return verdict(journey, rules, lambda ms: f"T{ms - NOW}")


def offsets(found: list[Journey]) -> list[list[int]]:
    return [[c.position.offset for c in journey.copies] for journey in found]


def test_a_retry_belongs_to_the_message_it_repeats_within_two_windows() -> None:
    at = 10 * HOUR
    within, beyond = copy(8, at + HOUR), copy(9, at + 3 * HOUR)
    found = journeys(NAME, [beyond, copy(7, at), within], [], HOUR)
    assert offsets(found) == [[7, 8], [9]]
    assert [journey.applied.position.offset for journey in found if journey.applied] == [7, 9]


def test_after_a_dead_letter_the_next_copy_is_the_one() -> None:
    redriven = copy(9, redrive=Redrive(frozenset({"messaging", "history"})))
    (found,) = journeys(NAME, [copy(7), redriven], [dead(7)], HOUR)
    assert found.applied == redriven
    (found,) = journeys(NAME, [copy(7)], [dead(7)], HOUR)
    assert found.applied is None
    assert fate(found)[0] == "dead-lettered"
    assert "redrive 4" in fate(found)[1]


def test_what_was_redriven_for_history_is_no_delivery() -> None:
    for_history = copy(9, redrive=Redrive(frozenset({"history"})))
    (found,) = journeys(NAME, [copy(7), for_history], [dead(7, "history")], HOUR)
    assert found.applied == copy(7)
    # The part of the log that was read begins behind the message itself.
    (found,) = journeys(NAME, [for_history], [], HOUR)
    assert fate(found)[0] == "missing"


def test_the_way_of_a_message() -> None:
    found = journey()
    position, after = copy(7).position, Position.of(1, 6, 0)
    body = b'{"pos":"%b","id":"1"}' % str(position).encode()
    found.add_copies()
    found.add_sessions((connected(),), NOW - 500)
    found.add_connections()
    found.add_outgoing((Delivery("bob", PHONE, 9, PUSH, after, position, position, 1, body),), 2, NOW - 400)
    # Others' news, and what does not hold it.
    found.add_outgoing((Delivery("bob", PHONE, 9, PUSH, position, Position.of(1, 8, 0), None, 0, b""),), 2, NOW - 300)
    found.add_outgoing((Delivery("eve", LAPTOP, 9, PUSH, after, position, position, 1, body),), 2, NOW - 300)
    found.add_outgoing((InboxAdvanced("bob", PHONE, 9, after),), 2, NOW - 300)
    found.add_requests((Acknowledge("bob", "phone", after), Acknowledge("eve", "phone", position)), NOW - 250)
    found.add_requests((Acknowledge("bob", "phone", position, NOW - 350),), NOW - 200)
    found.add_requests((Acknowledge("bob", "phone", Position.of(1, 8, 0), NOW - 150),), NOW - 100)
    # A device that acknowledges several deliveries at once says when it was forwarded the last of them.
    found.add_requests((Acknowledge("bob", "tablet", Position.of(1, 9, 0), NOW - 90),), NOW - 80)
    assert [(hop.what, hop.at - NOW) for hop in found.ordered()] == [
        ("accepted", -1_000),
        ("logged", -995),
        ("connected", -500),
        ("pushed", -400),
        ("forwarded", -350),
        ("acknowledged", -200),
        ("forwarded", -90),
        ("acknowledged", -80),
    ]
    assert [hop.detail for hop in found.ordered() if hop.what == "forwarded"] == [
        "by its gateway to device phone",
        "by its gateway to device tablet, at the latest",
    ]
    assert fate(found) == ("acknowledged", "bob's device phone acknowledged it at T-200")
    hops = journey_json(found, verdict(found, RULES, str), str)["hops"]
    assert [hop["ms"] for hop in hops] == [0, 5, 500, 600, 650, 800, 910, 920]
    assert [hop["step_ms"] for hop in hops] == [0, 5, 495, 100, 50, 150, 110, 10]


def test_who_has_no_connection_is_told_from_who_does_not_acknowledge() -> None:
    inbox = Inbox(top=copy(7).position, stored=True, before=312)
    waits = f"it waits in the inbox at position {copy(7).position}, 312 before it"
    found = journey(inbox=inbox)
    assert fate(found) == ("pending", f"bob has no connection and had none since T-{2 * HOUR}, at least; {waits}")
    found.add_sessions((connected(), connected(LAPTOP, "laptop")), NOW - 900)
    found.add_sessions((UserDisconnected("bob", LAPTOP, 9), UserDisconnected("bob", PHONE, 8)), NOW - 800)
    assert "bob is connected (phone since T-900), but nothing was sent that holds it" in fate(found)[1]
    found.sent[PHONE] = NOW - 700
    assert fate(found)[1].startswith("it was sent to bob's device phone at T-700, and no device of bob has")
    found.add_sessions((UserDisconnected("bob", PHONE, 9),), NOW - 600)
    assert fate(found)[1].startswith(f"bob has no connection since T-600; {waits}; it was sent at T-700")


def test_a_connection_that_is_not_announced_any_more_is_none() -> None:
    found = journey(inbox=Inbox(top=copy(7).position, stored=True))
    found.add_sessions((connected(),), NOW - 3 * RULES.sweep_ms)
    assert f"no connection since T-{3 * RULES.sweep_ms}" in fate(found)[1]
    found.add_sessions((connected(),), NOW - 1)
    assert "bob is connected" in fate(found)[1]
    # A newer one of the same device takes its place.
    found.add_sessions((connected(LAPTOP, "phone", 2),), NOW - 1)
    assert found.connections[PHONE].gone_at == NOW - 1


def test_what_was_sent_an_hour_ago_is_not_known_and_said_to_be_so() -> None:
    found = journey(copy(7, NOW - 90 * 60_000), inbox=Inbox(top=copy(7).position, stored=True))
    found.add_sessions((connected(),), NOW - 1)
    assert f"what was sent before T-{HOUR} is no longer known" in fate(found)[1]


@pytest.mark.parametrize(
    ("found", "expected", "text"),
    [
        ({"inbox": Inbox(top=copy(9).position, gap=copy(5).position)}, "overflowed", "inbox was full"),
        ({"inbox": Inbox()}, "in flight", "it never ran on this partition"),
        ({"inbox": Inbox(top=copy(6).position), "next_offsets": {"messaging": 7}}, "in flight", "its next is offset 7"),
        ({"inbox": Inbox(top=copy(6).position), "next_offsets": {"messaging": 8}}, "missing", "Redis lost it"),
        ({"inbox": Inbox(), "next_offsets": {"messaging": 8}}, "missing", "Redis lost it"),
        (
            {"inbox": Inbox(top=copy(9).position, cursors={"phone": copy(8).position})},
            "acknowledged",
            "its cursor is past it",
        ),
        ({"inbox": Inbox(top=copy(9).position, cursors={"phone": copy(5).position})}, "missing", "no device of bob"),
    ],
)
def test_why_a_message_is_not_in_the_inbox(found: dict[str, Any], expected: str, text: str) -> None:
    outcome = fate(journey(**found))
    assert outcome[0] == expected
    assert text in outcome[1]


@pytest.mark.parametrize(
    "inbox",
    [Inbox(top=copy(9).position, stored=True), Inbox(top=copy(9).position), Inbox()],
    ids=["stored", "not", "gone"],
)
def test_what_is_older_than_an_inbox_keeps_it_has_expired(inbox: Inbox) -> None:
    found = journey(copy(7, NOW - RULES.ttl_ms - 1), inbox=inbox, next_offsets={"messaging": 8})
    assert fate(found)[0] == "expired"


def test_a_client_that_comes_back_all_the_time_does_not_fill_the_memory() -> None:
    found = journey()
    position = copy(7).position
    body = b'{"pos":"%b"' % str(position).encode()
    page = Delivery("bob", PHONE, 9, FIRST_REQUEST, Position(0, 0), position, position, 1, body)
    for n in range(5_000):
        found.add_outgoing((page,), 2, NOW + n)
    assert len(found.hops) == 500
    assert found.sent[PHONE] == NOW + 4_999
