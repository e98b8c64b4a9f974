"""Notes of what retention took unapplied: how many records, and which of them somebody has acknowledged."""

from __future__ import annotations

import msgspec
import pytest

from chat_streams.model.losses import MOST_SHOWN, Loss, Losses, records_of, unnoted


def loss(first: int, end: int, app: str = "messaging", partition: int = 0) -> Loss:
    return Loss(app, "incoming_messages", 1, partition, first, end)


def test_a_record_in_several_ranges_is_lost_once_for_each_service() -> None:
    found = [loss(100, 250), loss(100, 200), loss(240, 260), loss(110, 120, "history"), loss(100, 101, partition=1)]
    assert records_of(found) == 160 + 10 + 1
    assert records_of([]) == 0


def test_a_note_is_read_as_it_was_written_with_the_times_of_its_records() -> None:
    noted = Loss.decode(loss(1, 3).encode()).dated(1_000)
    assert noted.at == 1_000
    seen = Loss.decode(noted.acknowledged("ann@host").encode()).dated(2_000)
    assert (seen.at, seen.acknowledged_by, seen.acknowledged_at) == (1_000, "ann@host", 2_000)
    assert seen.key == noted.key == b"messaging/incoming_messages/1/0/1-3"
    with pytest.raises(msgspec.DecodeError):
        Loss.decode(None)


def test_what_is_acknowledged_is_counted_apart() -> None:
    seen = loss(1, 3).dated(5).acknowledged("ann@host")
    found = Losses.of([loss(5, 9), seen, loss(1, 2, partition=1)])
    assert (found.open, found.acknowledged) == ([loss(5, 9), loss(1, 2, partition=1)], [seen])
    assert Losses.of([loss(5, 9), loss(1, 2, partition=1)], [1]).open == [loss(1, 2, partition=1)]
    json = found.as_json()
    assert (json["lost_records"], json["acknowledged_records"]) == (5, 2)
    assert json["ranges"][0]["records"] == 4


def test_what_a_service_that_is_away_has_lost_is_known_before_it_notes_it() -> None:
    topic = "incoming_messages"
    firsts = {(topic, 0): 10, (topic, 1): 10, (topic, 2): 10, (topic, 3): 0}
    found = unnoted("history", 2, {(topic, 0): 10, (topic, 1): 4, (topic, 2): -1}, firsts)
    assert found == [Loss("history", topic, 2, 1, 4, 10), Loss("history", topic, 2, 2, 0, 10)]


def test_a_report_names_a_limited_number_of_ranges() -> None:
    many = Losses.of([loss(2 * n, 2 * n + 1) for n in range(MOST_SHOWN + 5)]).as_json()
    assert (many["lost_records"], len(many["ranges"])) == (MOST_SHOWN + 5, MOST_SHOWN)
