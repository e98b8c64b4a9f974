"""NATS with JetStream, file storage: one stream of all inboxes, a durable pull consumer with ``ack all`` for a user."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Sequence
from typing import Any, ClassVar

import msgspec

from bench.links import MARK, Link, LinkError
from bench.systems import HERE, NotInstalled, System, output
from bench.systems.ports import free_port

BINARY = HERE / "bin" / "nats-server"
STREAM = "INBOX"
PULL = 2_000
ACK_PENDING = 10_000
AT_ONCE = 100
ACK = b" $JS.ACK."
_numbers = itertools.count()


def pub(subject: str, content: bytes, reply: str = "") -> bytes:
    """Return PUB, with or without a subject for the answer."""
    return b"PUB %b %b%d\r\n%b\r\n" % (subject.encode(), f"{reply} ".encode() if reply else b"", len(content), content)


def create(user: str, reply: str) -> bytes:
    """Return the request that creates a user's consumer; it changes nothing where that exists already."""
    config = {
        "durable_name": user,
        "name": user,
        "filter_subject": f"inbox.{user}",
        "deliver_policy": "all",
        "ack_policy": "all",
        "max_ack_pending": ACK_PENDING,
    }
    request = msgspec.json.encode({"stream_name": STREAM, "config": config})
    return pub(f"$JS.API.CONSUMER.CREATE.{STREAM}.{user}.inbox.{user}", request, reply)


def last_whole(data: bytes) -> tuple[bytes | None, int]:
    """Return the subject that acknowledges the last complete message, and the index of the first byte still needed."""
    start, cut = len(data), max(0, len(data) - len(ACK) + 1)
    for _ in range(2):
        start = data.rfind(ACK, 0, start)
        if start < 0:
            return None, cut
        line = data.find(b"\r\n", start)
        if line >= 0:
            _, reply, size = data[start:line].split(b" ")
            if line + 4 + int(size) <= len(data):
                return reply, cut
        cut = start
    return None, cut


class NatsLink(Link):
    """A connection after its first PONG.

    The stream's answers to what was published hold one ``{`` each, and messages one ``^``: both are counted in the raw
    stream. A pull request asks for the next 2,000 messages when half of them have come; the last message of a piece is
    acknowledged, for all before it.
    """

    def __init__(self) -> None:
        super().__init__()
        self.confirmations = f"a.{next(_numbers)}"
        self.pull = b""
        self._left = 0
        self._rest = b""

    def frame(self, to: str, number: int, content: bytes) -> bytes:
        """Return a PUB whose answer comes to this connection."""
        return pub(f"inbox.{to}", content, self.confirmations)

    def ask(self) -> None:
        """Send a pull request for more messages."""
        self.transport.write(self.pull)
        self._left += PULL

    def feed(self, data: bytes) -> None:
        """Count answers and messages, acknowledge, and pull more."""
        if b"-ERR" in data or b'"error"' in data:
            raise LinkError(data[:300].decode(errors="replace"))
        self.confirmed += data.count(b"{")
        if not self.pull:
            return
        new = data.count(MARK)
        self.received += new
        self._left -= new
        data = self._rest + data
        reply, cut = last_whole(data)
        self._rest = data[cut:]
        if reply is not None:
            self.transport.write(b"PUB %b 0\r\n\r\n" % reply)
        if self._left < PULL // 2:
            self.ask()


class Nats(System):
    """One server."""

    name: ClassVar[str] = "nats"
    title: ClassVar[str] = "NATS JetStream"
    promise: ClassVar[str] = (
        "PubAck: the message is written to the stream's file, in the page cache; fsync every two minutes "
        "(`sync_interval`, the default; `always` is offered). One replica here."
    )

    @classmethod
    def version(cls) -> str:
        """Return the version that the server prints."""
        if not BINARY.exists():
            raise NotInstalled("nats-server is not installed: make bench-peers (needs Go)")
        return output([str(BINARY), "--version"]).rpartition(" v")[2].strip()

    async def start(self) -> None:
        """Start the server, and create the stream."""
        self.port = free_port()
        self.folder.mkdir(parents=True, exist_ok=True)
        configuration = self.folder / "nats.conf"
        configuration.write_text(
            f'listen: "127.0.0.1:{self.port}"\nping_interval: "1h"\nmax_connections: 20000\n'
            f'jetstream {{ store_dir: "{self.folder}/store", max_file_store: 50GB, '
            "limits { default_max_consumers: -1 } }\n"
        )
        self.spawn("nats-server", [str(BINARY), "-c", str(configuration)])
        await self.listening(self.port)
        self._known: set[str] = set()
        self._control = await self._dial()
        self._control.write(b"SUB ctl 1\r\n")
        config = {"name": STREAM, "subjects": ["inbox.*"], "storage": "file", "retention": "limits", "num_replicas": 1}
        await self._request(f"STREAM.CREATE.{STREAM}", config)

    async def _dial(self) -> NatsLink:
        link = NatsLink()
        await link.dial(self.port)
        link.write(b'CONNECT {"verbose":false,"pedantic":false,"protocol":1,"headers":true}\r\nPING\r\n')
        await link.expect(rb"PONG\r\n")
        return link

    async def _answer(self, link: NatsLink) -> dict[str, Any]:
        found = await link.expect(rb"MSG \S+ 1 \d+\r\n([^\r]*)\r\n")
        answer: dict[str, Any] = msgspec.json.decode(found[1])
        if "error" in answer:
            raise LinkError(str(answer["error"]))
        return answer

    async def _request(self, subject: str, content: dict[str, Any] | None = None) -> dict[str, Any]:
        payload = msgspec.json.encode(content) if content else b""
        self._control.write(pub(f"$JS.API.{subject}", payload, "ctl"))
        return await self._answer(self._control)

    async def connect(self, user: str, *, receive: bool) -> NatsLink:
        """Send CONNECT; to receive, also ask the user's consumer for messages."""
        link = await self._dial()
        link.write(f"SUB r.{user} 1\r\nSUB {link.confirmations} 2\r\n".encode())
        if receive:
            if user not in self._known:
                await self.prepare([user])
            link.pull = pub(f"$JS.API.CONSUMER.MSG.NEXT.{STREAM}.{user}", b'{"batch":%d}' % PULL, f"r.{user}")
            link.ready()
            link.ask()
        else:
            link.ready()
        return link

    async def prepare(self, users: Sequence[str]) -> None:
        """Create the users' consumers."""
        for start in range(0, len(users), AT_ONCE):
            some = users[start : start + AT_ONCE]
            self._control.write(b"".join(create(user, "ctl") for user in some))
            for _ in some:
                await self._answer(self._control)
        self._known |= set(users)

    async def emptied(self, links: dict[str, Link]) -> None:
        """Ask each consumer until nothing is pending."""
        users = list(links)
        while users:
            asked, rest = users[:AT_ONCE], users[AT_ONCE:]
            self._control.write(b"".join(pub(f"$JS.API.CONSUMER.INFO.{STREAM}.{user}", b"", "ctl") for user in asked))
            infos = [await self._answer(self._control) for _ in asked]
            left = [info["name"] for info in infos if info["num_pending"] or info["num_ack_pending"]]
            users = left + rest
            if left:
                await asyncio.sleep(0.001)
