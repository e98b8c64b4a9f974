"""The address and the headers of redriven records."""

from __future__ import annotations

from chat_streams.model.redrive import Redrive, address_for


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
