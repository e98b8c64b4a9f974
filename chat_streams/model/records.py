"""The records of the topics: tagged structs in msgpack, after a header of three bytes (two magic bytes, one version).

One record carries a batch (``docs/architecture.md``, "A record carries a batch").
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
"""The largest number of messages in a record; the index of a message in its record must stay small."""

PUSH: Final = 0
FIRST_REQUEST: Final = 1
"""The request numbers of pages: ``PUSH`` for an unrequested one, then ``FIRST_REQUEST`` upwards from connecting on."""


class _Record(msgspec.Struct, gc=False, array_like=True):
    """The base class of all structs here. Fields are encoded by order: add new ones only at the end, with a default."""


class Message(_Record):
    """A message accepted for one recipient.

    ``json`` is the JSON object that the recipient gets, without its first field, the position:
    ``,"id":…,"body":…}``. ``at`` is the time at which the gateway accepted the message, in ms since the epoch.
    """

    to: str
    sender: str
    id: str
    at: int
    json: bytes


class Messages(_Record, tag="messages"):
    """A record of ``incoming_messages``: up to ``MAX_MESSAGES`` messages, all for recipients on its partition.

    The position of a message is ``(generation of the log, offset of the record, index in messages)``.
    """

    messages: tuple[Message, ...]


class UserConnected(_Record, tag="user_connected"):
    """The event that a device has a connection, held by the gateway that leases ``slot`` in ``epoch``.

    ``number`` counts the connections of a device: a lower one never displaces a higher one. ``after`` is the position
    up to which messages were forwarded so far. With ``drain``, the gateway also requests the first page of the stored
    inbox: up to ``limit`` messages and ``limit_bytes`` bytes, before ``deadline`` (ms since the epoch). The
    announcement of a connection that exists already is for the registry only and has ``drain`` false.
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
    """The event that a connection has ended; it removes the registry's entry for this connection and epoch only."""

    user: str
    connection: bytes
    epoch: int


SessionEvents = tuple[UserConnected | UserDisconnected, ...]


class Acknowledge(_Record, tag="acknowledge"):
    """The acknowledgement that a device has all messages up to and including ``position``.

    ``forwarded_at`` is the time at which the last of them was forwarded to the device (ms since the epoch), or 0.
    """

    user: str
    device: str
    position: Position
    forwarded_at: int = 0


class Fetch(_Record, tag="fetch"):
    """A request for the page of an inbox above ``after``; it is skipped after ``deadline`` (ms since the epoch)."""

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
    """All messages of an inbox in ``(after, until]``: ``count`` JSON objects joined by commas.

    ``request`` is the number of the ``Fetch`` it answers, or ``PUSH`` or ``FIRST_REQUEST``. ``first`` is the position
    of the first message, ``None`` when ``count`` is 0.
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
    """The notice that messages in ``(after, until]`` left the inbox unacknowledged; history has them."""

    user: str
    connection: bytes
    epoch: int
    request: int
    after: Position
    until: Position


class Registered(_Record, tag="registered"):
    """The notice that the registry has this connection; ``top`` is the inbox's highest position, read after that."""

    user: str
    connection: bytes
    epoch: int
    top: Position


class InboxAdvanced(_Record, tag="target"):
    """The notice that the inbox has messages up to ``until``, which the gateway is to fetch."""

    user: str
    connection: bytes
    epoch: int
    until: Position


class Displaced(_Record, tag="displaced"):
    """The notice that a newer connection has displaced this one in the registry."""

    user: str
    connection: bytes
    epoch: int


class Announce(_Record, tag="announce"):
    """The request to announce all connections on these partitions: another worker now holds their registry."""

    partitions: tuple[int, ...]


Outgoing = tuple[Delivery | Missed | Registered | InboxAdvanced | Displaced | Announce, ...]


class DeadLetter(_Record, tag="dead_letter"):
    """A whole record that could not be applied, with its origin and the reason of its failure.

    ``first_at`` and ``last_at`` are the times of its first and last failure, in ms since the epoch.
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
    """The note that the dead letter at offset ``number`` of ``dead_letters`` was written back to its topic.

    That was done ``at`` (ms since the epoch); in its topic it is now the record at ``offset``.
    """

    number: int
    at: int
    offset: int


T = TypeVar("T")


class Record(NamedTuple, Generic[T]):
    """A decoded record with its partition and offset; a redriven one may have its original offset (``offset_for``)."""

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
        """Return the bytes of a record."""
        return _HEADER + self._encoder.encode(record)

    def decode(self, value: bytes | None) -> T:
        """Return the record that the bytes encode; raises ``UndecodableRecord`` or ``UnknownVersion``."""
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
