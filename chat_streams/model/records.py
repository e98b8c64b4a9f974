"""What flows through the topics: msgpack of tagged structs behind three bytes that say what they are.

A record carries a batch (``docs/architecture.md``, "A record carries a batch").
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final, Generic, NamedTuple, TypeVar

import msgspec

from chat_streams.model.errors import UndecodableRecord, UnknownVersion
from chat_streams.model.position import Position

MAGIC: Final = b"\xcc\x43"
VERSION: Final = 1
_HEADER: Final = MAGIC + bytes([VERSION])

MAX_MESSAGES: Final = 1_000
"""The most messages in a record; a message's index in it must stay small."""


PUSH: Final = 0
FIRST_REQUEST: Final = 1
"""Numbers of requests for a page: what nobody asked for, the page on connecting, and from there up."""


class _Record(msgspec.Struct, gc=False, array_like=True):
    """Fields go by place: new ones are only ever added at the end, with a default."""


class Message(_Record):
    """A message accepted for one recipient.

    ``json`` is the rest of the JSON object the recipient is sent, behind the position: ``,"id":…,"body":…}``.
    ``at`` is when the gateway took it, in ms since the epoch.
    """

    to: str
    sender: str
    id: str
    at: int
    json: bytes


class Messages(_Record, tag="messages"):
    """A record of ``incoming_messages``: up to ``MAX_MESSAGES``, all for recipients on its partition.

    A message's position is ``(generation of the log, offset of the record, its index here)``.
    """

    messages: tuple[Message, ...]


class UserConnected(_Record, tag="user_connected"):
    """A device of a user has a connection, held by the gateway that leases ``slot`` in ``epoch``.

    ``number`` counts the connections of a device: a lower one never displaces a higher one. ``after`` is what was
    forwarded so far. With ``drain``, the stored inbox is wanted: up to ``limit`` messages. An announcement of a
    connection that exists already is for the registry only and has ``drain`` false.
    """

    user: str
    device: str
    connection: bytes
    number: int
    slot: int
    epoch: int
    after: Position
    limit: int
    limit_bytes: int
    drain: bool
    deadline: int


class UserDisconnected(_Record, tag="user_disconnected"):
    """A connection is gone; it concerns the registry's row of exactly this connection and epoch."""

    user: str
    connection: bytes
    epoch: int


SessionEvents = tuple[UserConnected | UserDisconnected, ...]


class Acknowledge(_Record, tag="acknowledge"):
    """A device has everything up to and including ``position``.

    ``forwarded_at`` is when the latest of it was forwarded to the device (ms since the epoch), or 0.
    """

    user: str
    device: str
    position: Position
    forwarded_at: int = 0


class Fetch(_Record, tag="fetch"):
    """The inbox of a user above ``after`` is wanted on a connection; useless past ``deadline`` (ms since the epoch)."""

    user: str
    connection: bytes
    slot: int
    epoch: int
    request: int
    after: Position
    limit: int
    limit_bytes: int
    deadline: int
    device: str = ""


InboxRequests = tuple[Acknowledge | Fetch, ...]


class Delivery(_Record, tag="delivery"):
    """All of the inbox in ``(after, until]``: ``count`` JSON objects joined by commas, the first one's position.

    ``request`` is the number of the ``Fetch`` it answers, ``PUSH`` or ``FIRST_REQUEST``. ``first`` is ``None`` when
    ``count`` is 0.
    """

    user: str
    connection: bytes
    epoch: int
    request: int
    after: Position
    until: Position
    first: Position | None
    count: int
    messages: bytes


class Missed(_Record, tag="missed"):
    """The messages in ``(after, until]`` left the inbox without acknowledgement; history has them."""

    user: str
    connection: bytes
    epoch: int
    request: int
    after: Position
    until: Position


class Registered(_Record, tag="registered"):
    """The registry names this connection; ``top`` is the highest position in the inbox after that."""

    user: str
    connection: bytes
    epoch: int
    top: Position


class InboxAdvanced(_Record, tag="target"):
    """There is something in the inbox up to ``until``: to be fetched."""

    user: str
    connection: bytes
    epoch: int
    until: Position


class Displaced(_Record, tag="displaced"):
    """A newer connection of the same device has taken this one's place."""

    user: str
    connection: bytes
    epoch: int


class Announce(_Record, tag="announce"):
    """The registry of these partitions has a new keeper: announce your connections on them."""

    partitions: tuple[int, ...]


Outgoing = tuple[Delivery | Missed | Registered | InboxAdvanced | Displaced | Announce, ...]


class DeadLetter(_Record, tag="dead_letter"):
    """A record that could not be applied, whole, with where it came from and why it failed.

    ``first_at`` and ``last_at`` are when it failed for the first and the last time, in ms since the epoch.
    """

    app: str
    topic: str
    partition: int
    offset: int
    key: bytes | None
    value: bytes | None
    reason: str
    traceback: str
    first_at: int
    last_at: int


class Redriven(_Record, tag="redriven"):
    """The dead letter at the offset ``number`` of ``dead_letters`` went back to its topic, ``at`` (ms since the epoch).

    There it is the record at ``offset`` now.
    """

    number: int
    at: int
    offset: int


T = TypeVar("T")


class Record(NamedTuple, Generic[T]):
    """A decoded record and where it is in the log, or was before it was redriven for ``history``."""

    partition: int
    offset: int
    value: T
    headers: Iterable[tuple[str, bytes]] = ()


class Codec(Generic[T]):
    """Encodes and decodes the records of one topic."""

    def __init__(self, kind: Any) -> None:
        self._encoder = msgspec.msgpack.Encoder()
        self._decoder: msgspec.msgpack.Decoder[T] = msgspec.msgpack.Decoder(kind)

    def encode(self, record: T) -> bytes:
        """The bytes of a record."""
        return _HEADER + self._encoder.encode(record)

    def decode(self, value: bytes | None) -> T:
        """The record some bytes stand for; raises ``UndecodableRecord`` or ``UnknownVersion``."""
        if value is None or value[:2] != MAGIC or len(value) < 3:
            raise UndecodableRecord(f"does not begin with {MAGIC.hex()}, as records do")
        if value[2] != VERSION:
            raise UnknownVersion(f"the record has version {value[2]}, this program reads {VERSION}")
        try:
            return self._decoder.decode(memoryview(value)[3:])
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise UndecodableRecord(str(error)) from error


INCOMING: Final[Codec[Messages]] = Codec(Messages)
SESSIONS: Final[Codec[SessionEvents]] = Codec(SessionEvents)
REQUESTS: Final[Codec[InboxRequests]] = Codec(InboxRequests)
OUTGOING: Final[Codec[Outgoing]] = Codec(Outgoing)
DEAD_LETTERS: Final[Codec[DeadLetter | Redriven]] = Codec(DeadLetter | Redriven)
