from __future__ import annotations

import typing
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chat_streams.model.errors import UndecodableRecord, UnknownVersion
from chat_streams.model.position import MAX_GENERATION, MAX_INDEX, MAX_OFFSET, ORIGIN, Position
from chat_streams.model.records import (
    DEAD_LETTERS,
    INCOMING,
    LOGGED,
    MAGIC,
    OLD_TIMEOUT_MS,
    OUTGOING,
    REQUESTS,
    SESSIONS,
    VERSION,
    Acknowledge,
    Announce,
    Codec,
    DeadLetter,
    Delivery,
    Displaced,
    Fetch,
    InboxAdvanced,
    InboxRequests,
    Message,
    Messages,
    Missed,
    Outgoing,
    Redriven,
    Registered,
    SessionEvents,
    UserConnected,
    UserDisconnected,
)

CONNECTION = bytes(range(240, 256))
LOW, HIGH = Position.of(1, 0, 0), Position.of(MAX_GENERATION, MAX_OFFSET, MAX_INDEX)
JSON = ',"id":"1","from":"ä","at":"…","body":"\U0001f600"}'.encode()

EXAMPLES: list[tuple[Codec[Any], Any]] = [
    (INCOMING, Messages(())),
    (INCOMING, Messages((Message("bob", "alice", "1", 1, JSON), Message("bob", "alice", "2", 1 << 42, b"\xff\0")))),
    (SESSIONS, (UserConnected("bob", "phone", CONNECTION, 3, 15, 1 << 62, ORIGIN, 2_000, 1 << 20, True, 1 << 41),)),
    (SESSIONS, (UserDisconnected("bob", CONNECTION, 1), UserDisconnected("eve", b"", 2))),
    (REQUESTS, (Acknowledge("bob", "phone", HIGH),)),
    (REQUESTS, (Fetch("bob", CONNECTION, 0, 7, 2, LOW, 1, 1, 0), Acknowledge("bob", "phone", LOW))),
    (OUTGOING, (Delivery("bob", CONNECTION, 7, 2, ORIGIN, HIGH, LOW, 2, b'{"pos":"1-0"' + JSON),)),
    (OUTGOING, (Delivery("bob", CONNECTION, 7, 0, LOW, HIGH, None, 0, b""), InboxAdvanced("bob", CONNECTION, 7, HIGH))),
    (OUTGOING, (Missed("bob", CONNECTION, 7, 1, ORIGIN, LOW), Registered("bob", CONNECTION, 7, HIGH))),
    (OUTGOING, (Displaced("bob", CONNECTION, 7), Announce((0, 7)), Announce(()))),
    (DEAD_LETTERS, DeadLetter("messaging", "incoming_messages", 3, 1 << 39, b"bob", b"\xc1", "why", "where", 1, 2)),
    (DEAD_LETTERS, DeadLetter("messaging", "incoming_messages", 3, 0, None, None, "", "", 0, 0)),
    (DEAD_LETTERS, Redriven(1 << 39, 1 << 41, 0)),
]
CODECS: list[Codec[Any]] = [INCOMING, SESSIONS, REQUESTS, OUTGOING, DEAD_LETTERS]

hypothesis = settings(deadline=None, max_examples=150)


def _union(of: Any) -> set[type]:
    return set(typing.get_args(typing.get_args(of)[0]))


def _decode(codec: Codec[Any], value: bytes) -> Any:
    """Return the decoded record, or ``None`` when it is refused in one of the two ways a worker is prepared for."""
    try:
        return codec.decode(value)
    except (UndecodableRecord, UnknownVersion):
        return None


def test_the_examples_cover_every_type() -> None:
    found: set[type] = set()
    for _, record in EXAMPLES:
        found |= {type(item) for item in record} if isinstance(record, tuple) else {type(record)}
    assert found == {Messages, DeadLetter, Redriven} | _union(SessionEvents) | _union(InboxRequests) | _union(Outgoing)


@pytest.mark.parametrize(("codec", "record"), EXAMPLES)
def test_a_record_survives_its_bytes(codec: Codec[Any], record: Any) -> None:
    found = codec.decode(codec.encode(record))
    assert found == record
    assert type(found) is type(record)


def test_positions_come_back_as_positions() -> None:
    (found,) = OUTGOING.decode(OUTGOING.encode((Missed("bob", CONNECTION, 7, 1, LOW, HIGH),)))
    assert isinstance(found, Missed)
    assert type(found.after) is Position
    assert (str(found.after), found.until.generation) == (str(LOW), MAX_GENERATION)


@given(st.binary(max_size=2_000), st.text(max_size=50), st.integers(0, 1 << 62))
@hypothesis
def test_the_json_of_a_message_is_kept_byte_for_byte(json: bytes, name: str, at: int) -> None:
    record = Messages((Message(name, name, name, at, json),))
    assert INCOMING.decode(INCOMING.encode(record)) == record


@pytest.mark.parametrize("value", [None, b"", b"\xcc", MAGIC, b"\x00" + MAGIC + b"\x01", b"CC\x01\x90", b'{"a":1}'])
@pytest.mark.parametrize("codec", CODECS)
def test_what_does_not_begin_as_a_record_is_undecodable(codec: Codec[Any], value: bytes | None) -> None:
    with pytest.raises(UndecodableRecord, match="begin"):
        codec.decode(value)


def test_a_record_has_the_lowest_version_that_can_say_it() -> None:
    """A program of the version before reads what it understands, and stops at what it would take for something else."""
    logged = Message("bob", "alice", "1", LOGGED, JSON)
    asked = UserConnected("bob", "phone", CONNECTION, 3, 15, 1 << 62, ORIGIN, 1, 1, True, 2_000)
    gone, ack = UserDisconnected("bob", CONNECTION, 1), Acknowledge("bob", "phone", HIGH)
    fetch = Fetch("bob", CONNECTION, 0, 7, 2, LOW, 1, 1, 2_000)
    found = {
        **{name: INCOMING.encode(Messages(m))[2] for name, m in (("none", ()), ("logged", (logged,)))},
        "mixed": INCOMING.encode(Messages((Message("bob", "alice", "1", 1, JSON), logged)))[2],
        **{name: SESSIONS.encode(events)[2] for name, events in (("gone", (gone,)), ("asked", (gone, asked)))},
        **{name: REQUESTS.encode(items)[2] for name, items in (("ack", (ack,)), ("fetch", (ack, fetch)))},
        "push": OUTGOING.encode((InboxAdvanced("bob", CONNECTION, 7, HIGH),))[2],
    }
    new = {"logged", "mixed", "asked", "fetch"}
    assert found == {name: 2 if name in new else 1 for name in found}


def test_a_message_has_its_records_time_and_one_of_before_its_own() -> None:
    tail = b',"id":"1","from":"alice","body":1}'
    new = Message("bob", "alice", "1", LOGGED, tail)
    assert new.time_in(1_767_323_045_678) == 1_767_323_045_678
    assert new.json_at("5-0", 1_767_323_045_678) == b'{"pos":"5-0","at":"2026-01-02T03:04:05.678Z"' + tail
    old = Message("bob", "alice", "1", 5, b',"id":"1","from":"alice","at":"T","body":1}')
    assert (old.time_in(1_767_323_045_678), old.json_at("5-0", 1)) == (5, b'{"pos":"5-0"' + old.json)


def test_deadlines_of_another_clock_are_not_read() -> None:
    connected = UserConnected("bob", "phone", CONNECTION, 3, 15, 7, ORIGIN, 1, 1, True, 1_767_323_045_678)
    items: list[tuple[Codec[Any], Any]] = [
        (SESSIONS, connected),
        (REQUESTS, Fetch("bob", CONNECTION, 0, 7, 2, LOW, 1, 1, 1 << 41)),
    ]
    for codec, item in items:
        value = codec.encode((item,))
        (found,) = codec.decode(MAGIC + b"\x01" + value[3:])
        assert found.timeout_ms == OLD_TIMEOUT_MS


@pytest.mark.parametrize("version", [0, VERSION + 1, 255])
@pytest.mark.parametrize(("codec", "record"), EXAMPLES)
def test_another_version_is_no_dead_letter(codec: Codec[Any], record: Any, version: int) -> None:
    value = codec.encode(record)
    with pytest.raises(UnknownVersion, match=str(version)):
        codec.decode(value[:2] + bytes([version]) + value[3:])


@pytest.mark.parametrize(("codec", "record"), EXAMPLES)
def test_a_record_of_another_topic_is_undecodable(codec: Codec[Any], record: Any) -> None:
    value = codec.encode(record)
    for other in CODECS:
        if other is not codec:
            with pytest.raises(UndecodableRecord):
                other.decode(value)


@pytest.mark.parametrize(("codec", "record"), EXAMPLES)
def test_a_truncated_record_is_undecodable(codec: Codec[Any], record: Any) -> None:
    value = codec.encode(record)
    for length in range(len(value)):
        with pytest.raises(UndecodableRecord):
            codec.decode(value[:length])
    with pytest.raises(UndecodableRecord):
        codec.decode(value + b"\xc0")


@pytest.mark.parametrize("codec", CODECS)
def test_endless_nesting_is_undecodable(codec: Codec[Any]) -> None:
    # It stands for a field that a newer program may have added.
    nested = MAGIC + bytes([VERSION]) + b"\x93\xa8messages\x90" + b"\x91" * 100_000 + b"\xc0"
    with pytest.raises(UndecodableRecord):
        codec.decode(nested)


def test_a_field_added_by_a_newer_program_is_ignored() -> None:
    record = Messages((Message("bob", "alice", "1", 1, JSON),))
    tag, messages = msgspec.msgpack.decode(INCOMING.encode(record)[3:])
    newer = [tag, [[*message, {"new": 1}] for message in messages], "new"]
    assert INCOMING.decode(INCOMING.encode(record)[:3] + msgspec.msgpack.encode(newer)) == record


@given(st.sampled_from(CODECS), st.binary(max_size=80), st.booleans())
@hypothesis
def test_any_bytes_are_a_record_or_refused(codec: Codec[Any], value: bytes, headed: bool) -> None:
    _decode(codec, MAGIC + bytes([VERSION]) + value if headed else value)


@given(st.sampled_from(EXAMPLES), st.data())
@settings(deadline=None, max_examples=400)
def test_a_damaged_record_is_a_record_or_refused(example: tuple[Codec[Any], Any], data: st.DataObject) -> None:
    codec, record = example
    value = bytearray(codec.encode(record))
    for _ in range(data.draw(st.integers(1, 3))):
        value[data.draw(st.integers(0, len(value) - 1))] = data.draw(st.integers(0, 255))
    found = _decode(codec, bytes(value))
    if found is not None:
        assert codec.decode(codec.encode(found)) == found
