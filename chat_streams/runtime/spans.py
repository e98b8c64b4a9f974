"""Spans of sampled messages for OpenTelemetry: ``send``, ``append``, ``forward``, ``acknowledge``, and ``history``.

Off unless ``CHAT_TRACES`` is set, and then nothing of OpenTelemetry is imported. The gateway that takes a message
decides whether it is sampled; from there on the headers of the records say so (``Mark``). Spans name messages, users
and positions, never bodies. What one message went through without being sampled, the command ``trace`` knows.
"""

from __future__ import annotations

import random
import re
from collections import deque
from collections.abc import Iterable
from typing import TYPE_CHECKING, Final, NamedTuple

from chat_streams.model.position import Position
from chat_streams.runtime.settings import Settings

if TYPE_CHECKING:
    from opentelemetry.trace import Span

    from chat_streams.model.records import Messages, Record

HEADER: Final = "trace"
QUEUE: Final = 1_024
"""Spans that wait for the collector; past it, the oldest are dropped."""
EXPORT_SECONDS: Final = 2.0
"""For a batch of up to 512 spans. A process that ends while the collector is away waits for three at most."""
EXPECTED: Final = 100
"""Sampled messages of one connection that wait for their acknowledgement; the oldest is let go for another."""
_MARK: Final = re.compile(rb"([0-9]{1,6}) (00-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2})", re.ASCII)

Header = tuple[str, bytes]


class Mark(NamedTuple):
    """The header of a record about its item number ``item``: the span before it is ``parent``, a W3C traceparent."""

    item: int
    parent: str

    def header(self) -> Header:
        """The header that says this."""
        return HEADER, f"{self.item} {self.parent}".encode()

    @classmethod
    def all(cls, headers: Iterable[Header]) -> list[Mark]:
        """The marks among the headers of a record; what is none counts for nothing."""
        found = (_MARK.fullmatch(value) for name, value in headers if name == HEADER)
        return [cls(int(match[1]), match[2].decode()) for match in found if match]


def traceparent(span: Span) -> str:
    """Return the traceparent that names a span as the parent of others (W3C Trace Context, 3.2)."""
    context = span.get_span_context()
    return f"00-{context.trace_id:032x}-{context.span_id:016x}-{context.trace_flags:02x}"


class Traces:
    """Begins spans and sends those that have ended to a collector, from a thread of its own."""

    def __init__(self, endpoint: str, sample: float, service: str) -> None:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
        from opentelemetry.sdk.trace.sampling import ALWAYS_ON
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        self._sample = sample
        # Not made the process's own: the libraries' spans are not wanted.
        self._provider = TracerProvider(ALWAYS_ON, Resource.create({"service.name": f"connect-chat-{service}"}))
        exporter = OTLPSpanExporter(endpoint=endpoint, timeout=EXPORT_SECONDS)
        self._provider.add_span_processor(
            BatchSpanProcessor(exporter, QUEUE, export_timeout_millis=1000 * EXPORT_SECONDS)
        )
        self._tracer = self._provider.get_tracer("connect-chat")
        self._propagator = TraceContextTextMapPropagator()

    @classmethod
    def of(cls, settings: Settings, service: str) -> Traces | None:
        """Those that the settings want."""
        return None if settings.traces is None else cls(settings.traces, settings.trace_sample, service)

    def sampled(self) -> bool:
        """Decide whether the next message is sampled."""
        return random.random() < self._sample

    def begin(self, name: str, parent: str | None = None, **attributes: str | int) -> Span:
        """Begin a span, of a trace of its own without a parent."""
        context = None if parent is None else self._propagator.extract({"traceparent": parent})
        named = {f"chat.{key}": value for key, value in attributes.items()}
        return self._tracer.start_span(name, context, attributes=named)

    def begin_all(
        self, name: str, records: Iterable[Record[Messages]], generation: int
    ) -> dict[tuple[str, Position], Span]:
        """Begin a span for each marked message of some records; by recipient and position."""
        spans = {}
        for record in records:
            for index, parent in Mark.all(record.headers):
                if index < len(record.value.messages):
                    message, position = record.value.messages[index], Position.of(generation, record.offset, index)
                    spans[message.to, position] = self.begin(
                        name, parent, message=message.id, sender=message.sender, to=message.to, position=str(position)
                    )
        return spans


class _Expected:
    __slots__ = ("parent", "span", "until")

    def __init__(self, until: Position, span: Span) -> None:
        self.until = until
        self.span = span
        self.parent: str | None = None
        """The parent of the span of the acknowledgement, once the message was forwarded."""


class Expected:
    """The sampled messages of one connection, from their arrival to the acknowledgement of their delivery."""

    def __init__(self, traces: Traces, device: str) -> None:
        self._traces = traces
        self._device = device
        self._waiting: deque[_Expected] = deque()

    def add(self, parent: str, until: Position) -> None:
        """One has come in the delivery that ends at ``until``, and is to be forwarded."""
        if len(self._waiting) == EXPECTED:
            self._waiting.popleft()
        self._waiting.append(_Expected(until, self._traces.begin("forward", parent, device=self._device)))

    def moved(self, forwarded: Position, acked: Position) -> bool:
        """End the spans of what was forwarded and acknowledged by now; whether something still waits."""
        for each in self._waiting:
            if each.parent is None and each.until <= forwarded:
                each.span.end()
                each.parent = traceparent(each.span)
                each.span = self._traces.begin("acknowledge", each.parent, device=self._device)
        while self._waiting and self._waiting[0].until <= acked:
            self._waiting.popleft().span.end()
        return bool(self._waiting)
