"""The notices about the log that a gateway heeds while it runs: a repartition closes it, or a newer log has begun."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final, NoReturn

import msgspec
import structlog

from chat_streams.kafka.client import KAFKA_AWAY, client_options
from chat_streams.kafka.consumer import Consumer
from chat_streams.kafka.generations import Generation, decode, why_closed
from chat_streams.kafka.names import GENERATIONS
from chat_streams.model.errors import ConsumerEnded
from chat_streams.runtime.settings import Settings

log = structlog.get_logger()

WAIT_SECONDS: Final = 5.0
"""The longest wait of one fetch; a notice is read at once, and nobody else wakes up."""
AGAIN_SECONDS: Final = 1.0
POLL_RECORDS: Final = 500


class LogNotices:
    """Reads ``log_generations`` from the beginning and on.

    Args:
        settings: Settings of the process.
        topic_id: Kafka's id of ``incoming_messages``, as the process began with it.
        on_notice: Called with the reason why nothing may be written to the log, "" where it may, after each record.
    """

    def __init__(self, settings: Settings, topic_id: str, on_notice: Callable[[str], None]) -> None:
        self._settings = settings
        self._topic_id = topic_id
        self._on_notice = on_notice
        self._known: dict[str, Generation] = {}

    async def run(self) -> NoReturn:
        """Read until cancelled; a Kafka that is away is waited for."""
        while True:
            consumer = Consumer(
                client_options(self._settings),
                auto_offset_reset="earliest",
                fetch_max_wait_ms=int(1000 * WAIT_SECONDS),
            )
            try:
                await consumer.start()
                consumer.assign(GENERATIONS, 0)
                while True:
                    for records in (await consumer.poll(WAIT_SECONDS, POLL_RECORDS)).values():
                        for record in records:
                            self._take(record.value)
            except (*KAFKA_AWAY, ConsumerEnded) as error:
                log.warning("notices about the log cannot be read, waiting", error=repr(error))
            finally:
                await consumer.stop()
            await asyncio.sleep(AGAIN_SECONDS)

    def _take(self, value: bytes) -> None:
        try:
            notice = decode(value)
        except msgspec.DecodeError as error:
            log.error("a notice about the log cannot be read", topic=GENERATIONS, error=repr(error))  # noqa: TRY400
            return
        self._known[notice.topic_id] = notice
        self._on_notice(why_closed(self._known.values(), self._topic_id))
