"""The address and the headers of redriven records."""

from __future__ import annotations

from chat_streams.model.redrive import Redrive, address_for, first_offset


def test_a_redriven_record_keeps_its_time_and_may_keep_its_offset() -> None:
    for redrive, expected in (
        (Redrive(frozenset({"history"})), (90, 900)),
        (Redrive(frozenset({"history"}), 5, 7, 100), (7, 100)),
        (Redrive(frozenset({"history", "messaging"}), 5, None, 100), (90, 100)),
        # Of a dead letter of before, whose time is not known.
        (Redrive(frozenset({"history"}), 5, 7), (7, 900)),
    ):
        headers = redrive.headers()
        assert Redrive.of(headers) == redrive
        assert address_for("history", 90, 900, headers) == expected
    assert address_for("messaging", 90, 900, Redrive(frozenset({"history"})).headers()) is None
    assert address_for("messaging", 90, 900, None) == (90, 900)


def test_the_first_offset_of_a_record_is_known_however_often_it_is_redriven() -> None:
    assert first_offset(90, None) == 90
    assert first_offset(90, Redrive(frozenset({"history"}), first_offset=7).headers()) == 7
    assert first_offset(90, Redrive(frozenset({"history"})).headers()) == 90
