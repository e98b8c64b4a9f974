"""Private members of aiokafka 0.14 that have no public counterpart (``tests/unit/compat/test_aiokafka.py``).

``docs/upstream.md`` has what to ask of aiokafka, so that each of them can go.
"""

from __future__ import annotations

import socket
import struct
from typing import Any, Final, NoReturn

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.errors import KafkaConnectionError, ProducerClosed

_RESET: Final = struct.pack("ii", 1, 0)
"""SO_LINGER on, for no time: the kernel throws away what it did not send yet, and says so to the peer."""


async def send_to_any_broker(admin: AIOKafkaAdminClient, request: Any) -> Any:
    """Return a broker's answer to a request that aiokafka lacks, such as Metadata 10; raises ``KafkaError``."""
    return await admin._client.send(admin._client.get_random_node(), request)


async def send_to_broker(admin: AIOKafkaAdminClient, node: int, request: Any) -> Any:
    """Return the answer of one broker to a request, such as a group's heartbeat; raises ``KafkaError``."""
    return await admin._send_request_to_node(node, request)


async def fetch_metadata(consumer: AIOKafkaConsumer) -> Any:
    """Return the metadata of all topics, asked of Kafka now; raises ``KafkaError``.

    ``AIOKafkaConsumer.topics()`` asks for it, too, and returns the names only.
    """
    return await consumer._client.fetch_all_metadata()


def fetcher_has_ended(consumer: AIOKafkaConsumer) -> bool:
    """Return whether the task that fetches is over: an error it does not know ends it, and ``getmany`` never tells."""
    return bool(consumer._fetcher.error_future.done())


async def disconnect(consumer: AIOKafkaConsumer) -> None:
    """Close the connections of a consumer whose ``stop`` ended half way: it cancels a fetch, and passes that on."""
    await consumer._client.close()


class _Connections(dict[Any, Any]):
    """The connections of a client, which can be ended at once with all that they still hold."""

    def __init__(self) -> None:
        super().__init__()
        self._transports: list[Any] = []
        self._is_cut = False

    def __setitem__(self, key: Any, connection: Any) -> None:
        transport = connection._writer.transport
        if self._is_cut:
            transport.abort()
            connection.close()
            raise KafkaConnectionError("cut off")
        transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        # One that was closed, as after a request without an answer, goes on sending what it holds.
        self._transports = [each for each in self._transports if not each.is_closing() or each.get_write_buffer_size()]
        self._transports.append(transport)
        super().__setitem__(key, connection)

    def __missing__(self, key: Any) -> NoReturn:
        raise KafkaConnectionError("cut off")

    def cut_off(self) -> None:
        self._is_cut = True
        for transport in self._transports:
            transport.abort()
        for connection in self.values():
            connection.close()
        self.clear()


async def _refuse(*_: Any, **__: Any) -> NoReturn:
    # Not retriable: the sender fails its batches with it.
    raise ProducerClosed


def make_severable(producer: AIOKafkaProducer) -> None:
    """Prepare a producer that is not started yet for ``cut_off``."""
    producer.client._conns = _Connections()


def cut_off(producer: AIOKafkaProducer) -> None:
    """End all that a producer could still write, at once; after it, ``producer.stop()`` no longer waits for Kafka.

    An idempotent producer tries its batches again without end, and ``stop()`` waits for that. Closing its connections
    is not enough: it makes new ones, and what their buffers and the kernel's hold is still sent to a Kafka that is
    only slow. Left is what the broker's side has received already.
    """
    producer.client.send = _refuse
    producer.client._conns.cut_off()
