"""The part of Faust's interface for a transport that nothing here uses (``tests/unit/compat/test_faust.py``).

Faust leaves the record to its conductor, counts acknowledgements, and waits for them; ``processing/transport.py`` hands
records to the streams itself and commits what ``processing/offsets.py`` knows to be done.
"""

from __future__ import annotations

from typing import Any, ClassVar

import mode
from faust.transport.producer import Producer
from faust.types.transports import ConsumerT


class UnusedConsumer(mode.Service, ConsumerT):
    """The part of a consumer's interface that only Faust's own conductor, fetcher and transactions call."""

    in_transaction = False
    unacked: ClassVar[set[Any]] = set()
    # Faust's compiled stream asks for it by this name. Nothing is put in: our messages are not tracked.
    _unacked_messages = unacked

    async def create_topic(self, *_: Any, **__: Any) -> None:
        """Do nothing: ``topics create`` makes the topics."""

    async def getmany(self, timeout: float) -> Any:
        """Return nothing: Faust's fetcher, which asks for it, does not run."""

    def track_message(self, message: Any) -> None:
        """Do nothing: no acknowledgements are counted."""

    def ack(self, message: Any) -> bool:
        """Do nothing: what is done is not told by an acknowledgement."""
        return True

    async def wait_empty(self) -> None:
        """Do nothing: nobody waits for acknowledgements."""

    async def on_task_error(self, exc: BaseException) -> None:
        """Do nothing: an agent that raises ends its worker."""

    def key_partition(self, topic: str, key: bytes | None, partition: int | None = None) -> int | None:
        """Return nothing: transactions ask for it."""

    def close(self) -> None:
        """Do nothing: the consumer is stopped with the app."""

    async def position(self, tp: Any) -> int | None:
        """Return nothing: recovery asks for it in transactions."""

    async def seek(self, partition: Any, offset: int) -> None:
        """Do nothing: recovery calls ``seek_wait``."""

    def verify_recovery_event_path(self, now: float, tp: Any) -> None:
        """Do nothing: it looks into aiokafka's fetcher."""

    def on_buffer_full(self, tp: Any) -> None:
        """Do nothing: the conductor's callbacks are not called."""

    def on_buffer_drop(self, tp: Any) -> None:
        """Do nothing, likewise."""


class UnusedProducer(Producer):
    """The part of a producer's interface that only ``topic_allow_declare`` and transactions call."""

    async def create_topic(self, *_: Any, **__: Any) -> None:
        """Do nothing: ``topics create`` makes the topics."""

    def supports_headers(self) -> bool:
        """Return true."""
        return True
