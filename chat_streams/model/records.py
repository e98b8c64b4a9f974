"""The records of the topics: tagged structs in msgpack, after a header of three bytes (two magic bytes, one version).

One record carries a batch (``docs/architecture.md``, "A record carries a batch"). A writer uses the lowest version that
can say what it has, so that an older reader stops at nothing it understands; readers know all up to ``VERSION``:

1   A message has the time of the gateway that accepted it, a request for a page a deadline by that gateway's clock.
2   A message has its record's time, a request for a page tells how long its answer is waited for.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from typing import Any, Final, Generic, NamedTuple, TypeVar

import msgspec

from chat_streams.model.errors import UndecodableRecord, UnknownVersion
from chat_streams.model.position import Position
from chat_streams.model.times import utc

MAGIC: Final = b"\xcc\x43"
VERSION: Final = 2
LOGGED: Final = 0
"""The ``at`` of a message whose time is the append time of its record."""
OLD_TIMEOUT_MS: Final = 30_000
"""The longest time that the answer to a request of version 1 was waited for."""

MAX_MESSAGES: Final = 1_000
"""The largest number of messages in a record; the index of a message in its record must stay small."""

PUSH: Final = 0
FIRST_REQUEST: Final = 1
"""The request numbers of pages: ``PUSH`` for an unrequested one, then ``FIRST_REQUEST`` upwards from connecting on."""


class _Record(msgspec.Struct, gc=False, array_like=True):
    """The base class of all structs here. Fields are encoded by order: add new ones only at the end, with a default."""


class Message(_Record):
    """A message accepted for one recipient.

    ``json`` is the JSON object that the recipient gets, without its first fields, the position and the time:
    ``,"id":…,"body":…}``. ``at`` is ``LOGGED``; a message of version 1 has the time of its gateway, in ms since the
    epoch, and has it in ``json``, too.
    """

    to: str
    sender: str
    id: str
    at: int
    json: bytes

    def time_in(self, logged_at: int) -> int:
        """Return the time of the message in a record that was appended at ``logged_at``; both in ms since the epoch."""
        return self.at or logged_at

    def json_at(self, position: str, logged_at: int) -> bytes:
        """Return the JSON object that the recipient gets of the message, at its position and the time of its record."""
        if self.at:
            return b'{"pos":"%b"%b' % (position.encode(), self.json)
        return b'{"pos":"%b","at":"%b"%b' % (position.encode(), _time_text(logged_at), self.json)


@functools.lru_cache(maxsize=256)
def _time_text(ms: int) -> bytes:
    return utc(ms).encode()


class Messages(_Record, tag="messages"):
    """A record of ``incoming_messages``: up to ``MAX_MESSAGES`` messages, all for recipients on its partition.

    The position of a message is ``(generation of the log, offset of the record, index in messages)``.
    """

    messages: tuple[Message, ...]


class UserConnected(_Record, tag="user_connected"):
    """The event that a device has a connection, held by the gateway that leases ``slot`` in ``epoch``.

    ``number`` counts the connections of a device: a lower one never displaces a higher one. ``after`` is the position
    up to which messages were forwarded so far. With ``drain``, the gateway also requests the first page of the stored
    inbox: up to ``limit`` messages and ``limit_bytes`` bytes; it waits ``timeout_ms`` for the answer. The
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
    timeout_ms: int


class UserDisconnected(_Record, tag="user_disconnected"):
    """The event that a connection has ended; it removes the registry's entry for this connection and epoch only."""

    user: str
    connection: bytes
    epoch: int


SessionEvents = tuple[UserConnected | UserDisconnected, ...]


class Acknowledge(_Record, tag="acknowledge"):
    """The acknowledgement that a device has all messages up to and including ``position``.

    ``forwarded_at`` is the time by the log, about, at which the last of them was forwarded to the device (ms since the
    epoch), or 0.
    """

    user: str
    device: str
    position: Position
    forwarded_at: int = 0


class Fetch(_Record, tag="fetch"):
    """A request for the page of an inbox above ``after``; after ``timeout_ms`` the connection makes another one."""

    user: str
    connection: bytes
    slot: int
    epoch: int
    request: int
    after: Position
    limit: int
    limit_bytes: int
    timeout_ms: int
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

    ``first_at`` and ``last_at`` are the times of its first and last failure, by the clocks of the workers;
    ``logged_at`` is the time at which it was appended to its topic, 0 if that is not known. All in ms since the epoch.
    ``first_offset`` is that of the record which was redriven first, where this is a redriven one, else ``None``.
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
    logged_at: int = 0
    first_offset: int | None = None


class Redriven(_Record, tag="redriven"):
    """The note that the dead letter at offset ``number`` of ``dead_letters`` was written back to its topic.

    That was done ``at`` (ms since the epoch); in its topic it is now the record at ``offset``.
    """

    number: int
    at: int
    offset: int


T = TypeVar("T")


class Record(NamedTuple, Generic[T]):
    """A decoded record with its partition, offset and append time (ms since the epoch).

    A redriven one has its original time, and may have its original offset (``redrive.address_for``).
    """

    partition: int
    offset: int
    at: int
    value: T
    headers: Iterable[tuple[str, bytes]] = ()


class Codec(Generic[T]):
    """Encodes and decodes the records of one topic.

    Args:
        kind: The type of a record.
        is_new: Whether a record needs version 2; without, all of them are of version 1.
        from_1: What makes a record of version 1 one of today.
    """

    def __init__(
        self, kind: Any, is_new: Callable[[T], bool] | None = None, from_1: Callable[[T], T] | None = None
    ) -> None:
        self._is_new = is_new
        self._from_1 = from_1
        self._encoder = msgspec.msgpack.Encoder()
        self._decoder: msgspec.msgpack.Decoder[T] = msgspec.msgpack.Decoder(kind)

    def encode(self, record: T) -> bytes:
        """Return the bytes of a record."""
        header = _NEW if self._is_new is not None and self._is_new(record) else _OLD
        return header + self._encoder.encode(record)

    def decode(self, value: bytes | None) -> T:
        """Return the record that the bytes encode; raises ``UndecodableRecord`` or ``UnknownVersion``."""
        if value is None or value[:2] != MAGIC or len(value) < 3:
            raise UndecodableRecord(f"does not begin with {MAGIC.hex()}, as records do")
        if not 1 <= value[2] <= VERSION:
            raise UnknownVersion(f"the record has version {value[2]}, this program reads 1 to {VERSION}")
        try:
            record = self._decoder.decode(memoryview(value)[3:])
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise UndecodableRecord(str(error)) from error
        return self._from_1(record) if value[2] == 1 and self._from_1 is not None else record


_OLD: Final = MAGIC + b"\x01"
_NEW: Final = MAGIC + b"\x02"


def _has_logged(record: Messages) -> bool:
    return any(message.at == LOGGED for message in record.messages)


def _has_request(record: SessionEvents | InboxRequests) -> bool:
    return any(isinstance(item, UserConnected | Fetch) for item in record)


def _without_deadlines(record: T) -> T:
    for item in record:  # type: ignore[attr-defined]
        if isinstance(item, UserConnected | Fetch):
            item.timeout_ms = OLD_TIMEOUT_MS
    return record


INCOMING: Final[Codec[Messages]] = Codec(Messages, _has_logged)
SESSIONS: Final[Codec[SessionEvents]] = Codec(SessionEvents, _has_request, _without_deadlines)
REQUESTS: Final[Codec[InboxRequests]] = Codec(InboxRequests, _has_request, _without_deadlines)
OUTGOING: Final[Codec[Outgoing]] = Codec(Outgoing)
DEAD_LETTERS: Final[Codec[DeadLetter | Redriven]] = Codec(DeadLetter | Redriven)
