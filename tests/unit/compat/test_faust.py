"""The names in ``compat/faust.py`` and the transport are still those that Faust asks for."""

from __future__ import annotations

import inspect
from pathlib import Path

import faust
from faust.types.transports import ConsumerT

from chat_streams.compat.faust import UnusedConsumer
from chat_streams.processing.consumer import Consumer
from chat_streams.processing.transport import Producer


def test_nothing_that_faust_asks_of_a_transport_is_missing() -> None:
    assert Consumer.__abstractmethods__ == frozenset()
    assert Producer.__abstractmethods__ == frozenset()


def test_faust_still_asks_for_what_is_not_used() -> None:
    ours = {name for name, value in vars(UnusedConsumer).items() if inspect.isfunction(value)}
    assert {"ack", "wait_empty"} <= ours <= ConsumerT.__abstractmethods__


def test_the_compiled_stream_still_asks_for_a_private_name() -> None:
    # Once this fails, UnusedConsumer needs it no more.
    source = Path(faust.__file__).with_name("_cython") / "streams.pyx"
    assert "self.consumer._unacked_messages" in source.read_text()
