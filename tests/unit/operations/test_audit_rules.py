"""The audit's verdict on a message, case by case, and its memory for millions of them."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chat_streams.model.position import MAX_INDEX, ORIGIN, Position
from chat_streams.model.records import Acknowledge, Message, UserConnected
from chat_streams.operations.audit_rules import (
    MOST_FINDINGS,
    Claims,
    Fate,
    Finding,
    Head,
    Item,
    Logged,
    Partition,
    Problem,
    Repeats,
    Report,
    Rules,
    View,
    check_head,
    judge,
    pack,
    unpack,
)
from docker.local.layout import ROOT

DAY = 24 * 3600
NOW = 1_800_000_000_000
RULES = Rules(NOW, inbox_ttl=30 * DAY, retry_window=3600, max_devices=16, retention=30 * DAY)
END = pack(Position.of(1, 1_000_000, 0))


def at(offset: int) -> Position:
    return Position.of(1, offset, 0)


def message(id_: str = "m", sender: str = "alice", to: str = "bob", accepted: int = NOW - 1000) -> Message:
    return Message(to, sender, id_, accepted, b"")


def item(offset: int, age: int | None = None, dead: bool = False, accepted: int = NOW - 1000) -> Item:
    return Item(pack(at(offset)), accepted, message(), age, dead)


def head(
    top: int = 100, floor: int | None = None, first: int | None = None, seen: int = NOW // 1000, **cursors: int
) -> Head:
    """Return an inbox's head; numbers are offsets."""
    return Head(
        top=pack(at(top)),
        floor=0 if floor is None else pack(at(floor)),
        first=None if first is None else pack(at(first)),
        last=0,
        devices={name: pack(at(offset)) for name, offset in cursors.items()},
        seen=dict.fromkeys(cursors, seen),
    )


def stored(of: Head, *offsets: int, accepted: int = NOW - 1000, gaps: tuple[tuple[int, int], ...] = ()) -> View:
    return View(
        of,
        {pack(at(offset)): accepted // 1000 for offset in offsets},
        [(pack(at(after)), pack(at(until))) for after, until in gaps],
    )


def acked(when: int = NOW - 1000, **cursors: int) -> Claims:
    logged = Logged()
    for name, offset in cursors.items():
        logged.acknowledged(Acknowledge("bob", name, at(offset)), when)
    return logged.of("bob")


def connected(logged: Logged, after: Position, drain: bool = True, device: str = "phone") -> None:
    logged.connected(UserConnected("bob", device, b"", 1, 0, 0, after, 1, 1, drain, 0), NOW - 1000)


def verdict(one: Item, view: View, claims: Claims, rules: Rules = RULES) -> Fate | Problem:
    return judge(one, view, claims, rules, acks_applied=True)


positions = st.builds(Position, st.integers(0, (1 << 64) - 1), st.integers(0, MAX_INDEX))


@given(positions, positions)
@settings(deadline=None)
def test_packed_positions_have_the_order_of_positions(a: Position, b: Position) -> None:
    assert unpack(pack(a)) == a
    assert (pack(a) < pack(b)) == (a < b)


STORED = stored(head(first=5, phone=4), 5)
GONE = stored(head(first=6, floor=4, phone=4))


@pytest.mark.parametrize(
    ("one", "view", "claims", "fate"),
    [
        pytest.param(item(5), STORED, acked(phone=4), Fate.PENDING, id="stored"),
        pytest.param(item(5), stored(head(), 5), {}, Fate.PENDING, id="stored for one who never came"),
        pytest.param(item(4), GONE, acked(phone=4), Fate.ACKNOWLEDGED, id="gone and acknowledged"),
        pytest.param(
            item(4),
            stored(head(phone=6, tv=4)),
            acked(phone=6, tv=4),
            Fate.ACKNOWLEDGED,
            id="by the slower device, too",
        ),
        pytest.param(
            item(4),
            stored(head(floor=4, tv=4)),
            acked(phone=4),
            Fate.ACKNOWLEDGED,
            id="below the floor of a new device",
        ),
        pytest.param(
            item(4), stored(head(top=4)), acked(phone=4), Fate.ACKNOWLEDGED, id="acknowledged, inbox gone since"
        ),
        pytest.param(item(5, age=10), GONE, acked(phone=4), Fate.RETRY, id="sent again"),
        pytest.param(item(5, age=5_400_000), GONE, acked(phone=4), Fate.RETRY, id="sent again in the next window"),
        pytest.param(item(5, age=5_400_000), STORED, acked(phone=4), Fate.PENDING, id="taken as a new one"),
        pytest.param(item(5, dead=True), GONE, acked(phone=4), Fate.DEAD_LETTERED, id="dead letter"),
        pytest.param(item(5), stored(head(), gaps=((4, 7),)), {}, Fate.OVERFLOWED, id="overflowed"),
        pytest.param(item(7), stored(head(), gaps=((4, 7),)), {}, Fate.OVERFLOWED, id="the last that overflowed"),
        pytest.param(item(5, accepted=NOW - 31 * DAY * 1000), GONE, acked(phone=4), Fate.EXPIRED, id="expired"),
        pytest.param(
            item(5), stored(head(phone=4), 5, accepted=NOW - 31 * DAY * 1000), acked(phone=4), Fate.EXPIRED, id="unread"
        ),
    ],
)
def test_a_message_has_exactly_one_fate(one: Item, view: View, claims: Claims, fate: Fate) -> None:
    assert verdict(one, view, claims) is fate


@pytest.mark.parametrize(
    ("one", "view", "claims", "twice", "text"),
    [
        pytest.param(item(5), GONE, acked(phone=4), False, "not acknowledged by phone", id="gone"),
        pytest.param(item(5), stored(head(top=3)), {}, False, "whose top is", id="never there"),
        pytest.param(item(5), stored(head(floor=5)), acked(phone=4), False, "by any device", id="below a forged floor"),
        pytest.param(item(5), stored(head(phone=5, tv=5)), acked(phone=5, tv=3), False, "by tv", id="a forged cursor"),
        pytest.param(item(4), stored(head(), gaps=((4, 7),)), {}, False, "nowhere", id="before a gap"),
        pytest.param(
            item(5), stored(head(top=0)), acked(phone=5, tv=3), False, "nowhere", id="inbox lost before the tv had it"
        ),
        pytest.param(item(5, dead=True), STORED, {}, True, "dead-lettered", id="stored and a dead letter"),
        pytest.param(item(5, age=10), STORED, acked(phone=4), True, "retry", id="delivered twice"),
        pytest.param(item(5), STORED, acked(phone=5), True, "acknowledged by all", id="stored and acknowledged"),
        pytest.param(item(5), stored(head(floor=5), 5), {}, True, "floor", id="stored where nobody reads"),
        pytest.param(item(5, age=7_200_001), GONE, acked(phone=4), False, "nowhere", id="the same id much later"),
    ],
)
def test_a_message_with_no_fate_or_two_is_a_problem(
    one: Item, view: View, claims: Claims, twice: bool, text: str
) -> None:
    found = verdict(one, view, claims)
    assert isinstance(found, Problem)
    assert found.twice == twice
    assert text in found.text


def test_what_was_only_forwarded_is_not_acknowledged() -> None:
    logged = Logged()
    connected(logged, at(3))
    connected(logged, at(8), drain=False)
    gone = stored(head(top=8, phone=8))
    assert isinstance(verdict(item(5), gone, logged.of("bob")), Problem)
    assert verdict(item(3), gone, logged.of("bob")) is Fate.ACKNOWLEDGED
    # But a cursor as high as that is not reported.
    assert check_head(head(phone=8), logged.of("bob"), RULES, 0, END) == []
    assert len(check_head(head(phone=9), logged.of("bob"), RULES, 0, END)) == 1


def test_acknowledgements_that_may_not_be_applied_yet_accuse_nobody() -> None:
    assert judge(item(5), STORED, acked(phone=5), RULES, acks_applied=False) is Fate.PENDING
    # Nor does the cursor that a device named when it connected: that removes nothing.
    logged = Logged()
    connected(logged, at(5))
    assert verdict(item(5), STORED, logged.of("bob")) is Fate.PENDING


def test_states_that_no_log_explains_are_found() -> None:
    claims = acked(phone=4)
    assert check_head(head(phone=4), claims, RULES, 0, END) == []
    assert check_head(head(floor=4, phone=4, tv=4), claims, RULES, 0, END) == []
    (found,) = check_head(head(floor=6, phone=4), claims, RULES, 0, END)
    assert "floor" in found
    # What is gone from the log took along what showed it.
    assert check_head(head(floor=6, phone=9), claims, RULES, pack(at(9)), END) == []
    assert len(check_head(head(floor=6, phone=10), claims, RULES, pack(at(9)), END)) == 1
    (found,) = check_head(head(top=1_000_000, phone=4), claims, RULES, 0, END)
    assert "above the end of the log" in found
    (found,) = check_head(head(phone=4), acked(phone=4, tv=4), RULES, 0, END)
    assert "device tv" in found
    # The device was forgotten after the time to live, or in favour of a newer one.
    assert check_head(head(phone=4), {**acked(when=NOW - 29 * DAY * 1000, tv=1), **claims}, RULES, 0, END) == []
    assert (
        check_head(head(**{f"d{n}": 4 for n in range(16)}), acked(**{f"d{n}": 4 for n in range(17)}), RULES, 0, END)
        == []
    )
    # The log no longer holds the record that the cursor names.
    assert check_head(head(phone=9, seen=NOW // 1000 - 29 * DAY), {}, RULES, 0, END) == []


# Retries


def _ages(messages: list[Message], **options: Any) -> list[int | None]:
    repeats = Repeats(**options)
    for one in messages:
        repeats.mark(one)
    return [repeats.age(one, one.at) for one in messages]


names = st.tuples(st.sampled_from("ab"), st.sampled_from("xy"), st.sampled_from("123"), st.integers(0, 5))


@given(st.lists(names, max_size=40), st.integers(3, 12), st.sampled_from([2, 1_000]))
@settings(deadline=None)
def test_repeats_are_found_exactly_however_small_the_filter(
    given_: list[tuple[str, str, str, int]], bits: int, most_suspects: int
) -> None:
    last: dict[tuple[str, ...], int] = {}
    expected = []
    for *name, when in given_:
        key = tuple(name)
        expected.append(None if key not in last else abs(when - last[key]))
        last[key] = when
    messages = [message(id_, sender, to, when) for to, sender, id_, when in given_]
    assert _ages(messages, bits=bits, most_suspects=most_suspects) == expected


def test_a_name_is_not_two_names_joined() -> None:
    assert _ages([message("b", "a"), message("", "ab"), message("ab", "")], bits=3) == [None, None, None]


def test_of_more_suspects_than_are_held_the_latest_are_kept() -> None:
    messages = [message(str(n)) for n in (*range(10), *range(9, -1, -1))]
    found = _ages(messages, most_recent=4)
    assert found[10:] == [0, 0, 0, 0, None, None, None, None, None, None]


# The whole


def test_a_partition_audited_in_two_parts_names_its_findings() -> None:
    report, logged = Report(), Logged()
    logged.acknowledged(Acknowledge("bob", "phone", at(2)), NOW)
    part = Partition(3, pack(ORIGIN), logged, report)
    state = head(top=9, floor=2, first=3, phone=2)
    first = [item(offset) for offset in (1, 2, 3)]
    (look,) = part.looks(first)
    assert (look.user, look.after, look.until, look.messages) == ("bob", 0, pack(at(3)), 3)
    # The view may hold messages behind the last one asked for: the end of a gap.
    assert part.judge(first, {"bob": stored(state, 3, 4)}, RULES, acks_applied=True) == []
    second = [item(offset) for offset in (4, 6)]
    (look,) = part.looks(second)
    assert (look.after, look.until) == (pack(at(3)), pack(at(6)))
    suspicious = part.judge(second, {"bob": stored(state, 4, 5)}, RULES, acks_applied=True)
    assert [unpack(one.position) for one in suspicious] == [at(6)]
    assert report.fates == {Fate.ACKNOWLEDGED: 2, Fate.PENDING: 2}
    assert report.findings == [Finding(3, "bob", "is in the inbox and not in the log", at(5))]
    for one in suspicious * 2 * MOST_FINDINGS:
        report.wrong(3, one, Problem("is nowhere", twice=False))
    assert (len(report.findings), report.left_out, report.messages) == (MOST_FINDINGS, MOST_FINDINGS + 1, 204)
    assert not report.clean
    # The inbox is known to be empty above the entries it had, so messages read later need no look.
    assert part.looks([item(2)]) == []


_MEASURE = r"""
import json, re, sys
from chat_streams.operations.audit_rules import *
from chat_streams.model.position import Position
from chat_streams.model.records import Acknowledge, Message

count, users, chunk, now = int(sys.argv[1]), 1_000, 4_000, 1_800_000_000_000
rules = Rules(now, 30 * 86400, 3600, 16, 30 * 86400)

def log():
    # Each 200th is the last one to its recipient, sent again; the last fourth is pending.
    for n in range(count):
        named = n - users if n % 100 == 99 and n // users % 2 else n
        to = f"user-{n % users}"
        yield Position.of(1, n // 100, n % 100), Message(to, "alice", f"id-{named}", now - 1000, b"")

border = pack(Position.of(1, count * 3 // 4 // 100, 0))
logged, report, repeats = Logged(), Report(), Repeats()
for n in range(users):
    logged.acknowledged(Acknowledge(f"user-{n}", "phone", unpack(border - 1)), now)
for _, message in log():
    repeats.mark(message)
part = Partition(0, pack(Position.of(1, 0, 0)) - 1, logged, report)

def flush(items):
    retries = {i.position for i in items if i.age is not None}
    top, devices = pack(Position.of(1, count, 0)), {"phone": border - 1}
    head = Head(top, border - 1, border, border, devices, {"phone": now // 1000})
    views = {look.user: View(head, {}, []) for look in part.looks(items)}
    for item in items:
        if item.position >= border and item.position not in retries:
            views[item.message.to].messages[item.position] = now // 1000
    assert part.judge(items, views, rules, True) == []

items = []
for position, message in log():
    items.append(Item(pack(position), message.at, message, repeats.age(message, message.at), False))
    if len(items) == chunk:
        flush(items)
        items = []
flush(items)
assert report.clean and report.messages == count
# Not getrusage: what that says of a child begins with its parent's.
peak = re.search(r"VmHWM:\s*(\d+) kB", open("/proc/self/status").read())[1]
print(json.dumps([report.fates, int(peak)]))
"""


def _measure(count: int) -> tuple[dict[str, int], int]:
    """Return the fates of ``count`` messages, and the peak memory of the process, in KiB."""
    done = subprocess.run(
        [sys.executable, "-c", _MEASURE, str(count)], cwd=ROOT, capture_output=True, text=True, check=True
    )
    fates, peak = json.loads(done.stdout)
    return fates, peak


@pytest.mark.skipif(sys.platform != "linux", reason="asks /proc for the peak")
def test_ten_times_the_messages_take_no_more_memory() -> None:
    fates, small = _measure(50_000)
    assert fates["retry"] == 250
    fates, large = _measure(500_000)
    assert fates["retry"] == 2_500
    assert fates["acknowledged"] + fates["retry"] + fates["pending"] == 500_000
    # Anything held for each message would grow 0.45 million times; only the names of retries and the filter's pages
    # grow.
    assert large - small < 20 * 1024, (small, large)
