"""The parts of the inspector that need no engine: counts, measurements, search and history."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import AsyncIterator
from typing import Any

import pytest
from aiokafka.structs import TopicPartition

from chat_streams.inspector.decoding import decoded
from chat_streams.inspector.feed import Budget, Feed, Follower, plan
from chat_streams.inspector.pages.dead_letters import groups_of, kind_of
from chat_streams.inspector.pages.guarantee import verdict
from chat_streams.inspector.pages.journey import slots_lost
from chat_streams.inspector.pages.overview import wrong_clocks
from chat_streams.inspector.pages.search import goal
from chat_streams.inspector.pages.tail import SHOWN_PER_S, Filters, View, positions
from chat_streams.inspector.series import HOUR_MS, MAX_EVENTS, MAX_INSTANCES, POINTS, STEP_MS, OnLogTime, Series
from chat_streams.kafka.log_reader import LogRecord, Span
from chat_streams.kafka.names import DEAD_LETTERS as DEAD_LETTERS_TOPIC
from chat_streams.kafka.names import INBOX_REQUESTS, INCOMING_MESSAGES, OUTGOING_MESSAGES
from chat_streams.model.position import Position
from chat_streams.model.records import (
    DEAD_LETTERS,
    INCOMING,
    OUTGOING,
    REQUESTS,
    Acknowledge,
    DeadLetter,
    Delivery,
    Fetch,
    Message,
    Messages,
)
from chat_streams.operations.formats import empty_in, hex_rows, rate, size
from chat_streams.operations.journey import Connection, Journey, Name
from chat_streams.operations.lag import Watermarks
from chat_streams.operations.lag_sampling import count_of
from chat_streams.runtime.settings import Settings
from chat_streams.runtime.statistics import ServiceStats

NOW = 1_800_000_000_000
TP = TopicPartition(INCOMING_MESSAGES, 0)


def said(at: int, instance: str = "gateway@a:1", started: int = NOW, **counters: int) -> ServiceStats:
    return ServiceStats(instance.partition("@")[0], instance, at, started, counters)


def messages(count: int) -> bytes:
    return INCOMING.encode(Messages(tuple(Message("bob", "alice", f"m{n}", NOW, b',"body":1}') for n in range(count))))


@pytest.mark.parametrize("count", [0, 1, 15, 16, 1_000, 70_000])
def test_a_record_is_counted_by_its_first_bytes(count: int) -> None:
    assert count_of(INCOMING_MESSAGES, messages(count)) == count
    acks = REQUESTS.encode(tuple(Acknowledge("bob", "phone", Position(1, 2)) for _ in range(count)))
    assert count_of(INBOX_REQUESTS, acks) == count


@pytest.mark.parametrize(
    "value", [None, b"", b"\xcc\x43", b"\xcc\x43\x01", b"\xcc\x43\x01\xdc", b"garbage", b"\xcc\x43\x01\x92"]
)
@pytest.mark.parametrize("topic", [INCOMING_MESSAGES, INBOX_REQUESTS])
def test_an_undecodable_record_is_counted_and_shown(topic: str, value: bytes | None) -> None:
    assert count_of(topic, value) >= 0
    items, problem = decoded(topic, value, bodies=True)
    assert items is None
    assert problem


def test_bodies_are_masked_in_what_is_decoded() -> None:
    (message,) = decoded(INCOMING_MESSAGES, messages(1), bodies=False)[0] or []
    assert "masked" in message["body"]
    (message,) = decoded(INCOMING_MESSAGES, messages(1), bodies=True)[0] or []
    assert message["body"] == 1
    delivery = Delivery("bob", b"c", 1, 0, Position(1, 1), Position(1, 2), Position(1, 2), 1, b'{"body":"secret"}')
    record = OUTGOING.encode((delivery,))
    assert "secret" not in str(decoded(OUTGOING_MESSAGES, record, bodies=False))
    assert b"secret".hex() not in str(decoded(OUTGOING_MESSAGES, record, bodies=False))
    assert "secret" in str(decoded(OUTGOING_MESSAGES, record, bodies=True))
    value = messages(1)
    letter = DeadLetter("history", "t", 0, 1, b"k", value, "why", "", NOW, NOW)
    assert value.hex() not in str(decoded(DEAD_LETTERS_TOPIC, DEAD_LETTERS.encode(letter), bodies=True))


def test_rates_and_totals_survive_a_restart_of_the_service_and_a_reader_that_came_late() -> None:
    series = Series()
    # A count from before the first record that was read is not of this time.
    series.add(said(NOW + HOUR_MS, accepted=1_000_000))
    series.add(said(NOW + HOUR_MS + STEP_MS, accepted=1_000_500))
    assert series.rate("gateway@a:1", "accepted") == 100
    # A new process begins at 0.
    again = NOW + HOUR_MS + 2 * STEP_MS
    series.add(said(again, started=again - 1000, accepted=7))
    assert series.rate("gateway@a:1", "accepted") is None
    assert series.since(0)["accepted"] == 507
    assert [event.what for event in series.events] == ["started"]


def test_the_hour_is_bounded_whatever_comes() -> None:
    series = Series()
    for step in range(2 * POINTS):
        series.add(said(NOW + step * STEP_MS, accepted=step, appended=2 * step, acknowledged=step))
    for number in range(2 * MAX_INSTANCES):
        series.add(said(NOW + 2 * POINTS * STEP_MS, f"gateway@b:{number}", NOW + 2 * POINTS * STEP_MS))
    chart = series.chart()
    assert len(chart["at"]) <= POINTS + 1
    assert {len(column) for column in chart.values()} == {len(chart["at"])}
    assert len(series.instances) <= MAX_INSTANCES
    assert len(series.before) <= MAX_INSTANCES
    assert len(series.events) <= MAX_EVENTS
    assert chart["accepted"][5] == 0.2
    assert chart["pending"][-2] == len(chart["at"]) - 1


class Story:
    """Records of ``service_stats`` every 5 s, and the panel's verdict on the live sum after each."""

    def __init__(self) -> None:
        self.series, self.at = Series(), NOW
        self.counts: dict[str, Counter[str]] = {"gateway@a:1": Counter(), "messaging@a:2": Counter()}

    def go_on(self, intervals: int = 1, lag: int = 0, **gauges: float) -> str:
        for _ in range(intervals):
            self.at += STEP_MS
            for instance, counters in self.counts.items():
                self.series.add(said(self.at, instance, NOW, **counters))
            inspector = said(self.at, "inspector@a:3", NOW)
            inspector.gauges = {"lag_messaging": float(lag), **gauges}
            self.series.add(inspector)
        return str(verdict(self.series.ledger)["tone"])


def test_the_live_sum_is_red_when_what_was_accepted_is_not_accounted_for() -> None:
    story = Story()
    gateway, messaging = story.counts.values()
    assert story.go_on() == "grey", "nothing is known before it was quiet once"
    assert story.go_on(3) == "good"
    for _ in range(10):
        # Messages that a gateway has published and messaging has not yet are no error.
        gateway.update(accepted=1_000)
        assert story.go_on(lag=3) in ("good", "wait")
        messaging.update(appended=990, retries=10)
    assert story.go_on(4) == "good"
    gateway.update(accepted=500)
    messaging.update(appended=499)
    assert story.go_on(3) in ("good", "wait")
    assert story.go_on(4) == "bad"
    assert "1 accepted and not applied" in verdict(story.series.ledger)["words"]
    assert story.go_on(100) == "bad", "it stays so"
    messaging.update(appended=1)
    assert story.go_on(3) == "good"


def test_the_live_sum_is_red_under_way_too_when_too_much_is_missing() -> None:
    story = Story()
    gateway, messaging = story.counts.values()
    story.go_on(4)
    tones = []
    for _ in range(30):
        gateway.update(accepted=1_000)
        messaging.update(appended=700)
        tones.append(story.go_on())
    assert tones[0] == "good"
    assert tones[-1] == "bad"


@pytest.mark.parametrize("killed", ["gateway@a:1", "messaging@a:2"])
def test_the_live_sum_is_amber_when_a_killed_process_took_counts_with_it(killed: str) -> None:
    story = Story()
    gateway, messaging = story.counts.values()
    story.go_on(4)
    gateway.update(accepted=500)
    messaging.update(appended=450 if killed.startswith("m") else 520)
    story.go_on()
    del story.counts[killed]
    assert "bad" not in [story.go_on() for _ in range(20)]
    found = verdict(story.series.ledger)
    assert found["tone"] == "wait"
    assert f"{killed} ended" in found["explained"][0]["text"]
    # The next audit has the exact sum, so all before it no longer counts.
    story.series.ledger.audited(story.at + 1)
    assert verdict(story.series.ledger)["tone"] == "grey"
    assert story.go_on(4) == "good"


def test_the_live_sum_is_amber_after_what_an_operator_redrove_and_red_without() -> None:
    story = Story()
    messaging = story.counts["messaging@a:2"]
    story.go_on(4, dead_letters=7.0)
    messaging.update(appended=1)
    assert story.go_on(8, dead_letters=8.0) == "wait"
    assert "dead_letters was written to" in verdict(story.series.ledger)["explained"][0]["text"]
    story.series.ledger.audited(story.at + 1)
    assert story.go_on(4, dead_letters=8.0) == "good"
    messaging.update(appended=1)
    assert story.go_on(8, dead_letters=8.0) == "bad"


def test_watermarks_give_lag_and_time_to_empty() -> None:
    marks = Watermarks()
    assert marks.lag("messaging") == 0
    marks.look({TP: 1_000}, {"messaging": {TP: 0}}, 0.0)
    assert marks.time_to_empty("messaging", TP) is None
    marks.look({TP: 1_100}, {"messaging": {TP: 300}}, 10.0)
    assert marks.behind("messaging", TP) == 800
    assert marks.rate(TP) == 10
    assert marks.time_to_empty("messaging", TP) == 800 / 20
    # The group falls behind.
    marks.look({TP: 9_000}, {"messaging": {TP: 400}}, 20.0)
    assert marks.time_to_empty("messaging", TP) is None
    # Records that only wait for their commit are not a growing lag.
    steady = Watermarks()
    steady.look({TP: 100}, {"history": {TP: 90}}, 0.0)
    steady.look({TP: 200}, {"history": {TP: 190}}, 10.0)
    assert steady.time_to_empty("history", TP) == 1.0
    never = Watermarks()
    never.look({TP: 5}, {"history": {TP: -1}}, 0.0)
    assert never.lag("history") == 5


@pytest.mark.parametrize(
    ("text", "path"),
    [
        ("incoming_messages/3/17", "/record/incoming_messages/3/17"),
        ("messaging-sessions-changelog/0/1", "/record/messaging-sessions-changelog/0/1"),
        ("slot:3", "/gateways#slot-3"),
        ("gateway 12", "/gateways#slot-12"),
        ("g-3", "/gateways#slot-3"),
        ("9f31c2aa", "/connection/9f31c2aa"),
        ("9f31c2aa" * 4, "/connection/" + "9f31c2aa" * 4),
        ("user:bob/..", "/user/bob%2F.."),
        ("message:a?b#c", "/message/a%3Fb%23c"),
        ("letter:7", "/dead-letters/7"),
        ("bob", None),
        ("//evil.test", None),
        ("a/b/c", None),
    ],
)
def test_the_search_box_finds_the_page_for_a_text(text: str, path: str | None) -> None:
    assert goal(text) == path


def test_dead_letters_are_grouped_by_what_went_wrong_not_by_which_record() -> None:
    def letter(number: int, reason: str, redriven: str | None = None) -> dict[str, Any]:
        return {
            "number": number,
            "app": "messaging",
            "topic": "t",
            "reason": reason,
            "redriven_at": redriven,
            "last_at": "x",
        }

    letters = [
        letter(1, "KeyError: 'a'"),
        letter(2, "no field 7"),
        letter(3, "no field 8"),
        letter(4, "no field 9", "x"),
    ]
    first, second = groups_of(letters)
    assert (first["reason"], first["open"], first["redriven"]) == ("no field …", 2, 1)
    assert [found["number"] for found in first["letters"]] == [4, 3, 2]
    assert second["reason"] == "KeyError: …"
    assert len(kind_of("x" * 10_000)) <= 160


def test_a_tail_goes_on_where_its_last_event_says_and_takes_no_nonsense() -> None:
    assert positions("0:17,3:2") == {0: 17, 3: 2}
    assert positions("") == positions("x:1,2,:,-1:5, 1:2") == {}


def test_filters_match_whole_fields_of_a_record() -> None:
    wanted = Filters(INCOMING_MESSAGES, user="bob", sender="alice", type="", header="")
    assert wanted.may_match(messages(1), ())
    assert not wanted.may_match(b"carol", ())

    def message(to: str, sender: str) -> Message:
        return Message(to, sender, "m", NOW, b"")

    assert wanted.matches(message("bob", "alice"))
    assert not wanted.matches(message("bobby", "alice"))
    assert not wanted.matches(message("alice", "bob"))
    acks = Filters(INBOX_REQUESTS, "bob", "", "ack", "")
    assert acks.matches(Acknowledge("bob", "phone", Position(1, 2)))
    assert not acks.matches(Fetch("bob", b"c", 1, 1, 1, Position(1, 1), 1, 1, NOW))
    redriven = Filters(INCOMING_MESSAGES, "", "", "", "redrive-for=messaging")
    assert redriven.may_match(b"", [("redrive-for", b"messaging")])
    assert not redriven.may_match(b"", [("redrive-for", b"history")])


def test_a_tail_reads_all_there_is_within_its_budget_and_the_newest_of_more() -> None:
    assert plan({0: (5, 8), 1: (7, 7), 2: (0, 1)}, 10) == {0: (5, 8), 2: (0, 1)}
    assert plan({0: (0, 1_000), 1: (0, 2), 2: (9, 9)}, 10) == {0: (992, 1_000), 1: (0, 2)}
    assert plan({0: (0, 9)}, 0) == plan({0: (0, 9)}, -3) == {}
    (only,) = plan(dict.fromkeys(range(8), (0, 100)), 1).values()
    assert only == (99, 100)
    budget = Budget(1_000, 4_000)
    start = time.monotonic()
    assert budget.left(start + 100) == 4_000
    budget.spend(5_000)
    # One record may be larger than the whole budget: then nothing is read for a while.
    assert budget.left(start + 100) == -1_000
    assert budget.left(start + 103) == 2_000


def follower(view: View, at: int | None = None) -> Follower:
    return Follower({0: at}, view.take)


class Log:
    """A partition of records of ten messages each, which notes the offsets that were read."""

    def __init__(self, end: int) -> None:
        self.end = end
        self.reads: list[int] = []

    async def ends(self, topic: str, partitions: list[int]) -> dict[int, int]:
        return {0: self.end} if partitions else {}

    async def read(self, spans: list[Span]) -> AsyncIterator[LogRecord]:
        for span in spans:
            for offset in range(span.first, span.end):
                self.reads.append(offset)
                yield LogRecord(span.topic, 0, offset, NOW, None, messages(10), ())


async def test_followers_of_a_topic_share_one_read_and_each_has_an_offset() -> None:
    everything = Filters(INCOMING_MESSAGES, "", "", "", "")
    views = [View(everything, False, 0.0) for _ in range(3)]
    one, two, back = (follower(view, at) for view, at in zip(views, (None, None, 95), strict=True))
    log, feed = Log(100), Feed(Settings(), INCOMING_MESSAGES, Budget())
    feed.followers = {one, two}
    await feed.look(log, 1_000)  # type: ignore[arg-type]
    assert (log.reads, one.place) == ([], "0:100"), "it begins at the end"
    feed.followers.add(back)
    log.end = 103
    await feed.look(log, 1_000)  # type: ignore[arg-type]
    assert log.reads == list(range(95, 103)), "who comes back goes on there, and nobody's record is read twice"
    assert [view.counts["things"] for view in views] == [30, 30, 80]
    # A flood: the newest records are read, the rest are counted.
    log.end = 1_103
    await feed.look(log, 4)  # type: ignore[arg-type]
    assert log.reads[8:] == [1_099, 1_100, 1_101, 1_102]
    assert [f.skipped for f in (one, two, back)] == [996] * 3
    assert one.skipped_things == pytest.approx(9_960, rel=0.3)
    assert {f.place for f in (one, two, back)} == {"0:1103"}
    assert all(view.counts["shown"] == len(view.items) == SHOWN_PER_S for view in views)
    assert views[0].counts["dropped"] == 70 - SHOWN_PER_S


def test_numbers_are_shown_with_units() -> None:
    assert (rate(0), rate(3.14), rate(1234.5), rate(None)) == ("0/s", "3.1/s", "1,234/s", "–")
    assert (size(5), size(1536), size(3 * 1024**3)) == ("5 B", "1.5 KiB", "3.0 GiB")
    assert hex_rows(b"<script>\x00".hex()).startswith("00000000  3c 73 63")
    assert hex_rows("") == ""


def test_a_connection_whose_gateway_lost_its_lease_is_named_and_no_other() -> None:
    journey = Journey(Name("alice", "bob", "m"), [])
    journey.connections = {
        b"open": Connection("phone", 1, 3, 100, NOW, NOW),
        b"lost": Connection("desk", 1, 5, 100, NOW, NOW),
        b"taken": Connection("watch", 1, 7, 100, NOW, NOW),
        b"gone": Connection("old", 1, 9, 100, NOW, NOW, gone_at=NOW),
    }
    # Slot 7 belongs to another gateway by now.
    assert slots_lost(journey, {(3, 100), (7, 101)}) == [5, 7]


def test_a_group_is_said_not_to_catch_up_only_after_a_while() -> None:
    row = {"time_to_empty_s": None, "seconds": 2.0}
    assert empty_in(row) == "–"
    assert empty_in(row | {"seconds": 60.0}) == "not catching up"
    assert empty_in(row | {"time_to_empty_s": 90.0}) == "1 min 30 s"


def test_statistics_are_on_the_logs_time_whatever_the_clock_of_their_machine() -> None:
    hour, on_log = 3_600_000, OnLogTime()
    told = said(NOW + hour + 20_000, started=NOW + hour, accepted=1)
    found = on_log.of(told, NOW + 20_050)
    assert (found.at, found.started_at) == (NOW + 20_050, NOW + 50)
    # The time that a record takes to the log moves neither start nor interval.
    later = on_log.of(said(NOW + hour + 25_000, started=NOW + hour, accepted=2), NOW + 25_400)
    assert (later.at, later.started_at) == (NOW + 25_050, NOW + 50)
    series = Series()
    for record in (found, later):
        series.add(record)
    assert [r.instance for r in series.living(NOW + 26_000)] == [told.instance]
    assert series.rate(told.instance, "accepted") == 0.2
    # Its clock is set right: from then on by the new difference.
    right = on_log.of(said(NOW + 30_000, started=NOW + hour, accepted=3), NOW + 30_000)
    assert right.at == NOW + 30_000
    for n in range(2 * MAX_INSTANCES):
        on_log.of(said(NOW, f"gateway@a:{n}"), NOW)
    assert len(on_log._ahead) == MAX_INSTANCES


def test_a_clock_that_differs_is_named() -> None:
    records = [said(NOW, f"gateway@a:{n}") for n in range(3)]
    for record, skew in zip(records, (1.9, 3600.0, -2.5), strict=True):
        record.gauges = {"clock_skew_s": skew}
    assert wrong_clocks([*records, said(NOW, "history@a:9")]) == [
        {"instance": "gateway@a:1", "ahead_s": 3600.0},
        {"instance": "gateway@a:2", "ahead_s": -2.5},
    ]
