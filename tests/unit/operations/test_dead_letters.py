from __future__ import annotations

import msgspec
import pytest

from chat_streams.kafka.names import INBOX_REQUESTS, INCOMING_MESSAGES, SESSION_EVENTS, partition_of
from chat_streams.model.position import Position
from chat_streams.model.records import INCOMING, REQUESTS, Acknowledge, DeadLetter, Message, Messages, Redriven
from chat_streams.model.redrive import Redrive
from chat_streams.operations.dead_letters import Catalogue, Filter, readable, runs, wrong_partition

EVERYTHING = Filter()


def letter(
    app: str = "messaging", topic: str = INCOMING_MESSAGES, offset: int = 7, value: bytes | None = b"\xc1"
) -> DeadLetter:
    return DeadLetter(app, topic, 3, offset, b"bob", value, "ResponseError: WRONGTYPE", "…", 1_000, 2_000)


def catalogue(*items: DeadLetter | Redriven) -> Catalogue:
    found = Catalogue()
    for number, item in enumerate(items):
        found.add(number, item, EVERYTHING)
    return found


@pytest.mark.parametrize(
    "redrive",
    [
        Redrive(frozenset({"history"}), 0, 0),
        Redrive(frozenset({"messaging", "history"}), 1 << 41, None),
        Redrive(frozenset({"notification"}), None, 1 << 39),
    ],
)
def test_headers_say_the_same_to_whoever_reads_them(redrive: Redrive) -> None:
    assert Redrive.of(redrive.headers()) == redrive


@pytest.mark.parametrize("headers", [None, (), [("other", b"x")], [("at-offset", b"7")]])
def test_a_record_without_the_header_is_for_everybody(headers: list[tuple[str, bytes]] | None) -> None:
    assert Redrive.of(headers) is None


@pytest.mark.parametrize("number", [b"", b"-1", b"x", b"\xff", "٣".encode(), b"1.5"])
def test_numbers_that_are_none_never_stop_a_worker(number: bytes) -> None:
    headers = [("redrive-for", b"history"), ("at-offset", number), ("first-failed-at", number)]
    assert Redrive.of(headers) == Redrive(frozenset({"history"}), None, None)


def test_what_failed_in_messaging_goes_to_history_too_at_its_new_position() -> None:
    write = catalogue(letter()).write(0, letter())
    assert Redrive.of(write.headers) == Redrive(frozenset({"messaging", "history"}), 1_000, None, None, 7)
    assert write.covers == [0]


@pytest.mark.parametrize("first", [0, 7])
def test_a_record_that_fails_again_keeps_the_offset_that_it_had_first(first: int) -> None:
    again = msgspec.structs.replace(letter(offset=90), first_offset=first)
    redrive = Redrive.of(catalogue(again).write(0, again).headers)
    assert redrive is not None
    assert redrive.first_offset == first


def test_what_failed_in_history_alone_stays_where_it_was() -> None:
    write = catalogue(letter("history")).write(0, letter("history"))
    assert Redrive.of(write.headers) == Redrive(frozenset({"history"}), 1_000, 7, None, 7)


def test_a_record_that_failed_in_both_is_redriven_once() -> None:
    assert catalogue(letter("history"), letter()).write(1, letter()).covers == [0, 1]
    # Not the letter of another offset, and not one that has been redriven already.
    assert catalogue(letter("history", offset=8), letter()).write(1, letter()).covers == [1]
    assert catalogue(letter("history"), letter(), Redriven(0, 5, 9)).write(1, letter()).covers == [1]


def test_history_never_loses_the_position_that_an_inbox_has() -> None:
    # Messaging's went to offset 9: history's own, redriven later with --again, must not restore the old position.
    both = catalogue(letter("history"), letter(), Redriven(1, 5, 9))
    assert Redrive.of(both.write(0, letter("history")).headers) == Redrive(frozenset({"history"}), 1_000, 9, None, 7)
    # The second time messaging drops it as a retry: history keeps the first position.
    assert Redrive.of(both.write(1, letter()).headers) == Redrive(frozenset({"messaging"}), 1_000, None, None, 7)


@pytest.mark.parametrize(("app", "topic"), [("messaging", SESSION_EVENTS), ("notification", INBOX_REQUESTS)])
def test_other_records_go_to_the_app_that_failed(app: str, topic: str) -> None:
    write = catalogue(letter(app, topic)).write(0, letter(app, topic))
    assert Redrive.of(write.headers) == Redrive(frozenset({app}), 1_000, None)


@pytest.mark.parametrize(
    ("wanted", "matches"),
    [
        (Filter(), True),
        (Filter("messaging", INCOMING_MESSAGES, "wrongtype", 2_000), True),
        (Filter(app="history"), False),
        (Filter(topic=INBOX_REQUESTS), False),
        (Filter(reason="timeout"), False),
        (Filter(since=2_001), False),
    ],
)
def test_a_filter_means_all_it_says(wanted: Filter, matches: bool) -> None:
    assert wanted.matches(letter()) is matches


def test_neighbours_are_read_in_one_go() -> None:
    assert runs([]) == []
    assert runs([5]) == [(5, 6)]
    assert runs([0, 1, 5, 16, 17], gap=9) == [(0, 6), (16, 18)]


def test_a_body_shows_only_when_it_is_asked_for() -> None:
    record = Messages((Message("bob", "alice", "1", 1, b',"id":"1","from":"alice","at":"","body":{"a":"secret"}}'),))
    assert "secret" not in str(readable(record, bodies=False))
    assert readable(record, bodies=True)[0]["body"] == {"a": "secret"}
    broken = Messages((Message("bob", "alice", "1", 1, b"secret"),))
    assert "secret" not in str(readable(broken, bodies=False))
    ack = (Acknowledge("bob", "phone", Position.of(1, 2, 3)),)
    (shown,) = readable(ack, bodies=False)
    assert shown == {
        "type": "acknowledge",
        "user": "bob",
        "device": "phone",
        "position": str(Position.of(1, 2, 3)),
        "forwarded_at": 0,
    }


def test_a_record_of_a_log_that_was_repartitioned_is_noticed() -> None:
    here, elsewhere = (
        next(u for n in range(99) if (partition_of(u := f"u{n}", 8) == 3) is is_here) for is_here in (True, False)
    )

    def of(*users: str) -> DeadLetter:
        return letter(value=INCOMING.encode(Messages(tuple(Message(u, "alice", "1", 1, b"") for u in users))))

    assert wrong_partition(of(here), 8) is None
    assert wrong_partition(of(here, elsewhere), 8) == elsewhere
    ack = REQUESTS.encode((Acknowledge(elsewhere, "phone", Position.of(1, 2, 3)),))
    assert wrong_partition(letter("notification", INBOX_REQUESTS, value=ack), 8) == elsewhere
    assert wrong_partition(letter(), 8) is None
