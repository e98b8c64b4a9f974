"""Mosquitto: MQTT 3.1.1, QoS 1, persistent sessions. A user is a client id with one subscription, to ``u/<user>``."""

from __future__ import annotations

import asyncio
import re
import shutil
from collections.abc import Sequence
from typing import ClassVar

from bench.links import Link, LinkError, in_turn
from bench.systems import NotInstalled, System, output
from bench.systems.ports import free_port

PUBLISH, PUBACK, SUBACK, PINGRESP = 0x30, 0x40, 0x90, 0xD0
PING = b"\xc0\x00"
IDS = 65_535


def length(count: int) -> bytes:
    """Return the encoded remaining length of a packet."""
    out = bytearray()
    while True:
        count, digit = divmod(count, 128)
        out.append(digit | (0x80 if count else 0))
        if not count:
            return bytes(out)


def text(value: str) -> bytes:
    """Return a string with its length before it."""
    data = value.encode()
    return len(data).to_bytes(2, "big") + data


def packet(kind: int, content: bytes) -> bytes:
    """Return a control packet."""
    return bytes([kind]) + length(len(content)) + content


def connect_packet(client: str) -> bytes:
    """Return CONNECT with a session that is kept, and no keep-alive."""
    return packet(0x10, text("MQTT") + b"\x04\x00\x00\x00" + text(client))


def subscribe_packet(topic: str) -> bytes:
    """Return SUBSCRIBE to one topic with QoS 1."""
    return packet(0x82, b"\x00\x01" + text(topic) + b"\x01")


def publish_packet(topic: str, number: int, content: bytes) -> bytes:
    """Return PUBLISH with QoS 1; the packet id is made from the message's number."""
    return packet(0x32, text(topic) + (number % IDS + 1).to_bytes(2, "big") + content)


class MqttLink(Link):
    """A connection after CONNACK."""

    def __init__(self) -> None:
        super().__init__()
        self.pongs = 0
        self._rest = b""

    def frame(self, to: str, number: int, content: bytes) -> bytes:
        """Return a PUBLISH."""
        return publish_packet(f"u/{to}", number, content)

    def feed(self, data: bytes) -> None:
        """Count PUBACK, acknowledge PUBLISH; all acknowledgements of a piece go in one write."""
        data = self._rest + data if self._rest else data
        at, end, acks = 0, len(data), []
        while at + 2 <= end:
            kind, size, start = data[at], data[at + 1], at + 2
            if size & 0x80:
                size &= 0x7F
                shift = 7
                while start < end:
                    digit = data[start]
                    start += 1
                    size |= (digit & 0x7F) << shift
                    shift += 7
                    if not digit & 0x80:
                        break
                else:
                    break
            after = start + size
            if after > end:
                break
            if kind == PUBACK:
                self.confirmed += 1
            elif kind & 0xF0 == PUBLISH:
                index = start + 2 + (data[start] << 8 | data[start + 1])
                acks.append(b"\x40\x02" + data[index : index + 2])
                self.received += 1
            elif kind == PINGRESP:
                self.pongs += 1
            elif kind != SUBACK:
                raise LinkError(f"an unexpected packet of kind {kind:#x}")
            at = after
        self._rest = data[at:]
        if acks:
            self.transport.write(b"".join(acks))


class Mosquitto(System):
    """The broker of the Debian package."""

    name: ClassVar[str] = "mosquitto"
    title: ClassVar[str] = "Mosquitto"
    promise: ClassVar[str] = (
        "PUBACK: the message is in the broker's memory, in the queue of the persistent session. The database is "
        "written every 30 minutes (`autosave_interval`, the default) and at an orderly end; a killed broker loses "
        "what came since. No fsync per message, no replication."
    )

    @classmethod
    def version(cls) -> str:
        """Return the version that the broker prints."""
        if shutil.which("mosquitto", path=PATH) is None:
            raise NotInstalled("mosquitto is not installed: make bench-peers (sudo apt install mosquitto)")
        found = re.search(r"version (\S+)", output([_binary(), "-h"]))
        return found[1] if found else "unknown"

    async def start(self) -> None:
        """Start the broker with persistence and without limits on queues."""
        self.port = free_port()
        self.folder.mkdir(parents=True, exist_ok=True)
        configuration = self.folder / "mosquitto.conf"
        options = {
            "listener": f"{self.port} 127.0.0.1",
            "allow_anonymous": "true",
            "persistence": "true",
            "persistence_location": f"{self.folder}/",
            "user": "root",
            "max_queued_messages": "0",
            "max_inflight_messages": "20",
            "set_tcp_nodelay": "true",
            "log_type": "error",
            "log_dest": "stderr",
        }
        configuration.write_text("".join(f"{name} {value}\n" for name, value in options.items()))
        self.spawn("mosquitto", [_binary(), "-c", str(configuration)])
        await self.listening(self.port)

    async def connect(self, user: str, *, receive: bool) -> MqttLink:
        """Send CONNECT, and SUBSCRIBE to receive; where the session is kept, subscribing again changes nothing."""
        link = MqttLink()
        await link.dial(self.port)
        link.write(connect_packet(user))
        answer = await link.expect(rb"\x20\x02(..)")
        if answer[1][1] != 0:
            raise LinkError(f"CONNACK with return code {answer[1][1]}")
        if receive:
            link.write(subscribe_packet(f"u/{user}"))
        link.ready()
        return link

    async def prepare(self, users: Sequence[str]) -> None:
        """Connect each user once: from then on their session exists."""

        async def visit(user: str) -> None:
            link = await self.connect(user, receive=True)
            link.write(PING)
            while not link.pongs and link.failure is None:
                await asyncio.sleep(0.001)
            link.close()

        await in_turn([lambda user=user: visit(user) for user in users], 50)  # type: ignore[misc]

    async def emptied(self, links: dict[str, Link]) -> None:
        """Wait for the answer to a ping sent after the last acknowledgement."""
        for link in links.values():
            assert isinstance(link, MqttLink)
            before = link.pongs
            link.write(PING)
            while link.pongs == before:
                if link.failure is not None:
                    raise link.failure
                await asyncio.sleep(0.0005)


PATH = "/usr/sbin:/usr/local/sbin:/usr/bin:/usr/local/bin"


def _binary() -> str:
    return shutil.which("mosquitto", path=PATH) or "mosquitto"
