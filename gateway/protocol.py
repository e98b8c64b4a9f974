"""The frames of the wire protocol ``chat.v1`` (``docs/protocol.md``): JSON text in, JSON text out, no I/O."""

from __future__ import annotations

import re
from collections.abc import Iterable
from datetime import UTC, datetime
from itertools import accumulate
from typing import Annotated, Any, Final

import msgspec
from msgspec import Meta, Raw

from chat_streams.model.codes import Close, ErrorCode
from chat_streams.model.errors import ConnectChatError
from chat_streams.model.ids import MAX_ID, Id, is_id
from chat_streams.model.position import Position

SUBPROTOCOL: Final = "chat.v1"
PATH: Final = "/v1/connect"
MAX_TOKEN: Final = 8_192
MAX_CURSOR: Final = 512
MAX_HISTORY: Final = 200
DEFAULT_HISTORY: Final = 50

PositionText = Annotated[str, Meta(max_length=40, pattern=r"\A(0|[1-9][0-9]{0,19})-(0|[1-9][0-9]{0,9})\Z")]
Ref = Annotated[str, Meta(max_length=MAX_ID)]
Cursor = Annotated[str, Meta(min_length=1, max_length=MAX_CURSOR, pattern=r"\A[A-Za-z0-9._~@:#-]+\Z")]


def _check_range(field: str, text: str | None) -> None:
    # What the pattern lets through and is no position yet: msgspec turns this into its own error.
    if text is not None:
        try:
            Position.parse(text)
        except ValueError as error:
            raise ValueError(f"{error} - at `$.{field}`") from error


class _Frame(msgspec.Struct, gc=False, tag_field="type"):
    """A frame of a client. Fields it does not know are ignored: newer clients may send more."""


class Hello(_Frame, tag="hello"):
    """The first frame: who this is, on which device, and what the device has."""

    token: Annotated[str, Meta(max_length=MAX_TOKEN)]
    device: Id
    after: PositionText | None = None

    def __post_init__(self) -> None:
        _check_range("after", self.after)


class Send(_Frame, tag="send"):
    """A message for a user; ``body`` is any JSON."""

    id: Id
    to: Id
    body: Raw


class Ack(_Frame, tag="ack"):
    """Everything up to ``pos`` has arrived."""

    pos: PositionText

    def __post_init__(self) -> None:
        _check_range("pos", self.pos)


class History(_Frame, tag="history"):
    """Old messages: of the conversation ``with`` a user, or those in ``(after, until]`` of the own inbox."""

    ref: Ref
    with_: Id | None = msgspec.field(default=None, name="with")
    before: Cursor | None = None
    after: PositionText | None = None
    until: PositionText | None = None
    limit: Annotated[int, Meta(ge=1, le=MAX_HISTORY)] = DEFAULT_HISTORY

    def __post_init__(self) -> None:
        _check_range("after", self.after)
        _check_range("until", self.until)


class Ping(_Frame, tag="ping"):
    """Answered by a ``pong``."""

    ref: Ref


class _Reference(msgspec.Struct, gc=False):
    id: Any = None
    ref: Any = None


ClientFrame = Hello | Send | Ack | History | Ping


class InvalidFrame(ConnectChatError):
    """A frame, or an object in it, that is not understood: answered by an error, the connection stays."""

    def __init__(self, code: ErrorCode, text: str, **reference: str) -> None:
        super().__init__(text)
        self.frame = error(code, text, **reference)


class CloseConnection(ConnectChatError):
    """The connection is to be closed with a code and a reason."""

    def __init__(self, code: Close, reason: str) -> None:
        super().__init__(reason)
        self.code = code


class MalformedJson(CloseConnection):
    """A frame that can't be parsed at all."""

    def __init__(self, failure: Exception) -> None:
        super().__init__(Close.NOT_JSON, f"not JSON: {failure}")


_one = msgspec.json.Decoder(ClientFrame)
_many = msgspec.json.Decoder(list[ClientFrame])
_raw = msgspec.json.Decoder(Raw)
_raws = msgspec.json.Decoder(list[Raw])
_reference = msgspec.json.Decoder(_Reference)


def parse(text: str, most: int) -> list[ClientFrame | InvalidFrame]:
    """The objects of a frame, each understood or not.

    Raises ``MalformedJson``, or ``InvalidFrame`` where the frame as a whole is refused.
    """
    try:
        return _parse(text, most)
    except (msgspec.DecodeError, RecursionError) as failure:
        raise MalformedJson(failure) from failure


def _parse(text: str, most: int) -> list[ClientFrame | InvalidFrame]:
    if text.lstrip()[:1] != "[":
        try:
            return [_one.decode(text)]
        except msgspec.ValidationError:
            return [_parse_one(bytes(_raw.decode(text)))]
    try:
        frames: list[ClientFrame | InvalidFrame] = list(_many.decode(text))
    except msgspec.ValidationError:
        raws = _raws.decode(text)
        _check_count(len(raws), most)
        return [_parse_one(bytes(raw)) for raw in raws]
    _check_count(len(frames), most)
    return frames


def _check_count(count: int, most: int) -> None:
    if count > most:
        raise InvalidFrame(ErrorCode.TOO_MANY, f"a frame holds at most {most} objects, this one {count}")


def _parse_one(raw: bytes) -> ClientFrame | InvalidFrame:
    try:
        frame: ClientFrame = _one.decode(raw)
    except msgspec.ValidationError as failure:
        known = _known(raw)
        unknown = "$.type" in str(failure)
        return InvalidFrame(ErrorCode.UNKNOWN_TYPE if unknown else ErrorCode.BAD_FRAME, str(failure), **known)
    else:
        return frame


def _known(raw: bytes) -> dict[str, Any]:
    """The ``id`` and ``ref`` of an object that is not understood, as far as it has them."""
    try:
        found = _reference.decode(raw)
    except msgspec.ValidationError:
        return {}
    known = {"id": found.id} if is_id(found.id) else {}
    if isinstance(found.ref, str) and len(found.ref) <= MAX_ID:
        known["ref"] = found.ref
    return known


def at_text(at: int) -> str:
    """RFC 3339 in UTC with milliseconds, of ms since the epoch."""
    return datetime.fromtimestamp(at / 1000, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def at_of(messages: bytes) -> int | None:
    """The time when the first of some messages was accepted, in ms since the epoch; ``None`` where it can't be read."""
    # Ids and names before it hold no quotes.
    start = messages.find(b',"at":"', 0, 512) + 7
    try:
        return int(datetime.fromisoformat(messages[start : start + 24].decode("ascii")).timestamp() * 1000)
    except ValueError:
        return None


_body = msgspec.json.Decoder()
MAX_DEPTH: Final = 500
"""The deepest nesting of a body. Python's parsers bear 1,000 levels (3.11) to 10,000 (3.13), less the stack."""
_strings = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"')
_STEPS: Final = bytes.maketrans(b"[{]}", bytes([2, 2, 0, 0]))
_NO_BRACKETS: Final = bytes(set(range(256)) - set(b"[{]}"))


def _depth(body: bytes) -> int:
    """Return how deep arrays and objects are nested in a JSON text."""
    steps = _strings.sub(b"", body).translate(_STEPS, _NO_BRACKETS)
    return max(accumulate(step - 1 for step in steps), default=0)


def why_no_body(body: bytes) -> str | None:
    """The flaw in a body that a recipient's parser would stumble over, or ``None``.

    A number out of range, or nesting past a parser's limit, would end the recipient's client on each connection anew.
    """
    try:
        _body.decode(body)
        if body.count(b"[") + body.count(b"{") > MAX_DEPTH and _depth(body) > MAX_DEPTH:
            return "nested too deep"
    except RecursionError:
        return "nested too deep"
    except msgspec.DecodeError as failure:
        return str(failure)
    return None


_encode = msgspec.json.Encoder().encode


def message_tail(message_id: str, sender: str, at: str, body: bytes) -> bytes:
    """The JSON object of a message without its beginning ``{"pos":"…"``, which is known once it is in the log.

    All but the body is within the id grammar or made here, so nothing needs escaping.
    """
    return b',"id":"%b","from":"%b","at":"%b","body":%b}' % (message_id.encode(), sender.encode(), at.encode(), body)


def welcome(**fields: Any) -> bytes:
    """The answer to hello."""
    return _encode({"type": "welcome", **fields})


def sent(confirmed: Iterable[tuple[str, str]]) -> bytes:
    """The (message id, time) of messages that are in the log now."""
    objects = [b'{"type":"sent","id":"%b","at":"%b"}' % (i.encode(), at.encode()) for i, at in confirmed]
    return objects[0] if len(objects) == 1 else b"[%b]" % b",".join(objects)


def messages(after: Position, until: Position, objects: bytes) -> bytes:
    """All of the inbox in ``(after, until]``: JSON objects joined by commas."""
    return b'{"type":"messages","after":"%b","until":"%b","messages":[%b]}' % (
        str(after).encode(),
        str(until).encode(),
        objects,
    )


def missed(after: Position, until: Position) -> bytes:
    """The range ``(after, until]`` left the inbox without acknowledgement."""
    return _encode({"type": "missed", "after": str(after), "until": str(until)})


def caught_up(position: Position) -> bytes:
    """The inbox as of connecting is all forwarded."""
    return _encode({"type": "caught_up", "pos": str(position)})


def history(ref: str, objects: list[bytes], before: str | None) -> bytes:
    """A page of old messages, oldest first; ``before`` asks for the page before it, if there is one."""
    return b'{"type":"history","ref":%b,"messages":[%b],"before":%b}' % (
        _encode(ref),
        b",".join(objects),
        _encode(before),
    )


def error(code: ErrorCode, text: str, **reference: str | int) -> bytes:
    """An error with the ``id`` or ``ref`` it is about if that is known, and ``retry_in_ms`` where that is."""
    return _encode({"type": "error", "code": code, "message": text, "retry": code.retry, **reference})


def pong(ref: str) -> bytes:
    """The answer to ping."""
    return _encode({"type": "pong", "ref": ref})


def goodbye(reason: str, reconnect_in_ms: int) -> bytes:
    """The connection is about to be closed by the server."""
    return _encode({"type": "goodbye", "reason": reason, "reconnect_in_ms": reconnect_in_ms})
