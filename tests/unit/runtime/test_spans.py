"""Trace headers of sampled messages, the marks that a connection keeps, and the absence of both with traces off."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

import pytest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from chat_streams.model.position import ORIGIN, Position
from chat_streams.model.records import Message, Messages, Record
from chat_streams.runtime.settings import Settings
from chat_streams.runtime.spans import EXPECTED, HEADER, Expected, Mark, Traces, traceparent

PARENT = f"00-{'a' * 32}-{'b' * 16}-01"


class Recording(Traces):
    """Traces that keep the spans that have ended; there is no collector."""

    def __init__(self) -> None:
        super().__init__("http://127.0.0.1:9/v1/traces", 1.0, "test")
        self._provider.shutdown()
        self.exporter = InMemorySpanExporter()
        self._provider.add_span_processor(SimpleSpanProcessor(self.exporter))

    @property
    def ended(self) -> list[ReadableSpan]:
        return list(self.exporter.get_finished_spans())


@pytest.fixture
def traces() -> Recording:
    return Recording()


def at(offset: int) -> Position:
    return Position.of(1, offset, 0)


def test_a_mark_survives_its_header_and_others_are_left_alone() -> None:
    marks = [Mark(0, PARENT), Mark(999, PARENT)]
    others = [("redrive-for", b"history"), ("other", b"0 " + PARENT.encode())]
    assert Mark.all([marks[0].header(), *others, marks[1].header()]) == marks


@pytest.mark.parametrize(
    "value", [b"", b"0", b"-1 " + PARENT.encode(), b"x " + PARENT.encode(), b"0 00-a-b-01", b"\xff"]
)
def test_a_header_that_is_no_mark_counts_for_nothing(value: bytes) -> None:
    assert Mark.all([(HEADER, value)]) == []


def test_a_span_belongs_to_the_one_that_the_header_names(traces: Recording) -> None:
    root = traces.begin("send")
    messages = Messages(tuple(Message("bob", "alice", name, 1, b',"body":"secret"}') for name in "xy"))
    # One mark is of a message that the record does not have.
    marks = [Mark(1, traceparent(root)).header(), Mark(2, traceparent(root)).header()]
    ((key, span),) = traces.begin_all("append", [Record(0, 7, 1, messages, marks)], 3).items()
    assert key == ("bob", Position.of(3, 7, 1))
    span.end()
    (ended,) = traces.ended
    assert ended.parent is not None
    assert ended.context is not None
    context = root.get_span_context()
    assert (ended.context.trace_id, ended.parent.span_id) == (context.trace_id, context.span_id)
    assert dict(ended.attributes or {}) == {
        "chat.message": "y",
        "chat.sender": "alice",
        "chat.to": "bob",
        "chat.position": str(Position.of(3, 7, 1)),
    }


def test_an_acknowledged_message_was_forwarded_before(traces: Recording) -> None:
    expected = Expected(traces, "phone")
    expected.add(PARENT, at(1))
    expected.add(PARENT, at(2))
    # The window was closed: the message is forwarded with a later page.
    assert expected.moved(ORIGIN, ORIGIN)
    assert traces.ended == []
    assert expected.moved(at(2), at(1))
    assert [span.name for span in traces.ended] == ["forward", "forward", "acknowledge"]
    assert not expected.moved(at(2), at(2))
    forward, acknowledge = traces.ended[1], traces.ended[3]
    assert acknowledge.parent is not None
    assert forward.context is not None
    assert acknowledge.parent.span_id == forward.context.span_id


def test_a_client_that_never_acknowledges_has_a_bounded_number_of_marks(traces: Recording) -> None:
    expected = Expected(traces, "phone")
    for offset in range(EXPECTED + 50):
        expected.add(PARENT, at(offset))
        expected.moved(at(offset), ORIGIN)
    assert len(expected._waiting) == EXPECTED
    assert not expected.moved(at(EXPECTED + 50), at(EXPECTED + 50))


def test_the_share_of_sampled_messages_is_the_setting() -> None:
    assert Traces.of(Settings(), "test") is None
    for sample in (0, 1):
        found = Traces.of(Settings(traces="http://127.0.0.1:9/v1/traces", trace_sample=sample), "test")
        assert found is not None
        assert {found.sampled() for _ in range(100)} == {bool(sample)}


# redis-py imports the interface, and the part for metrics, of any OpenTelemetry that is installed.
OFF = """
import sys, threading
import gateway.app, chat_streams.messaging, chat_streams.notification, chat_streams.history
gateway.services.Services(chat_streams.messaging.app.settings)
print([m for m in sys.modules if m.startswith(("opentelemetry.sdk.trace", "opentelemetry.exporter", "requests"))],
      [t.name for t in threading.enumerate() if "Otel" in t.name])
"""


@pytest.mark.parametrize(("more", "is_off"), [({}, True), ({"CHAT_TRACES": "http://127.0.0.1:9/v1/traces"}, False)])
def test_with_traces_off_nothing_for_them_is_imported(more: dict[str, str], is_off: bool) -> None:
    environment: dict[str, Any] = {k: v for k, v in os.environ.items() if not k.startswith("CHAT_")}
    environment |= {"CHAT_JWT_SECRET": "k" * 32} | more
    out = subprocess.run(
        [sys.executable, "-c", OFF], env=environment, capture_output=True, text=True, check=True
    ).stdout
    assert (out.strip() == "[] []") is is_off, out
