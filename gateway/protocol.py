"""The frames of the wire protocol ``chat.v1`` (``docs/protocol.md``): JSON text in, JSON text out, no I/O."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from functools import lru_cache
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
    # JSON knows one kind of number: languages that do, too, write 50 as 50.0.
    limit: Annotated[float, Meta(ge=1, le=MAX_HISTORY, multiple_of=1)] | None = None

    def __post_init__(self) -> None:
        _check_range("after", self.after)
        _check_range("until", self.until)

    @property
    def page_size(self) -> int:
        """The largest number of messages in the answer."""
        return DEFAULT_HISTORY if self.limit is None else int(self.limit)


class Ping(_Frame, tag="ping"):
    """Answered by a ``pong``."""

    ref: Ref


_ABSENT: Final = Raw()


class _Texts(msgspec.Struct, gc=False):
    """The fields that hold text in any frame, undecoded."""

    type: Raw = _ABSENT
    id: Raw = _ABSENT
    ref: Raw = _ABSENT
    to: Raw = _ABSENT
    pos: Raw = _ABSENT
    token: Raw = _ABSENT
    device: Raw = _ABSENT
    with_: Raw = msgspec.field(default=_ABSENT, name="with")
    before: Raw = _ABSENT
    after: Raw = _ABSENT
    until: Raw = _ABSENT


ClientFrame = Hello | Send | Ack | History | Ping


class InvalidFrame(ConnectChatError):
    """A frame, or an object in it, that is not understood: answered by an error, the connection stays."""

    def __init__(self, code: ErrorCode, text: str, **reference: str | int) -> None:
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
_texts = msgspec.json.Decoder(_Texts)
_text = msgspec.json.Decoder(str)


def parse(text: str, most: int, look: Callable[[int], float] | None = None) -> list[ClientFrame | InvalidFrame]:
    """The objects of a frame, each understood or not; none where it is blank.

    Raises ``MalformedJson``, or ``InvalidFrame`` where the frame as a whole is refused.

    Args:
        text: The frame.
        most: The largest number of objects.
        look: Called before a careful look, which takes much longer, with the number of characters to look at; returns
            the seconds until it is allowed, 0 for now. ``None``: always.
    """
    try:
        return _parse(text, most)
    except (msgspec.DecodeError, RecursionError):
        pass
    if look is not None and not is_blank(text) and (wait := look(len(text))):
        error_text = "too many frames that need a careful look: halves of surrogate pairs, deep nesting"
        raise InvalidFrame(ErrorCode.RATE_LIMITED, error_text, retry_in_ms=math.ceil(wait * 1000))
    try:
        return _parse_carefully(text, most)
    except (msgspec.DecodeError, RecursionError) as failure:
        raise MalformedJson(failure) from failure


def is_blank(text: str) -> bool:
    """Return whether a frame holds nothing: some clients send such frames to keep a connection alive."""
    return not text.strip(_BLANK)


def _parse(text: str, most: int) -> list[ClientFrame | InvalidFrame]:
    if text.lstrip()[:1] != "[":
        try:
            return [_one.decode(text)]
        except msgspec.ValidationError:
            return [_parse_one(bytes(_raw.decode(text)))]
    try:
        frames: list[ClientFrame | InvalidFrame] = list(_many.decode(text))
    except msgspec.ValidationError:
        return _parse_each(_raws.decode(text), most)
    _check_count(len(frames), most)
    return frames


def _parse_each(raws: list[Raw], most: int) -> list[ClientFrame | InvalidFrame]:
    _check_count(len(raws), most)
    return [_parse_one(bytes(raw)) for raw in raws]


def _check_count(number: int, most: int) -> None:
    if number > most:
        raise InvalidFrame(ErrorCode.TOO_MANY, f"a frame holds at most {most} objects, this one {number}")


def _parse_one(raw: bytes) -> ClientFrame | InvalidFrame:
    try:
        frame: ClientFrame = _one.decode(raw)
    except msgspec.ValidationError as failure:
        unknown = "$.type" in str(failure)
        code = ErrorCode.UNKNOWN_TYPE if unknown else ErrorCode.BAD_FRAME
        return InvalidFrame(code, str(failure), **_known(raw))
    except UnicodeDecodeError:
        name = _halved(raw)
        code = ErrorCode.UNKNOWN_TYPE if name == "type" else ErrorCode.BAD_FRAME
        return InvalidFrame(code, f"{HALF_PAIR} - at `$.{name}`", **_known(raw))
    else:
        return frame


def _known(raw: bytes) -> dict[str, str]:
    """The ``id`` and ``ref`` of an object that is not understood, as far as it has them."""
    try:
        found = _texts.decode(raw)
    except msgspec.ValidationError:
        return {}
    known = {}
    if (text := _text_of(found.id)) is not None and is_id(text):
        known["id"] = text
    if (text := _text_of(found.ref)) is not None and len(text) <= MAX_ID:
        known["ref"] = text
    return known


def _text_of(raw: Raw) -> str | None:
    """The text that a value is; ``None`` where it is none, or absent."""
    try:
        return _text.decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None


def _halved(raw: bytes) -> str:
    """The name of the first field that holds a mark of half a surrogate pair."""
    found = _texts.decode(raw)
    values = zip(_Texts.__struct_encode_fields__, msgspec.structs.astuple(found), strict=True)
    # A name that comes twice stands for its last value, and the flaw may be in the first.
    return next((name for name, value in values if value is not _ABSENT and _HALF in bytes(value)), "…")


# What msgspec refuses as a whole, though JSON allows it and only one field may be concerned: halves of surrogate pairs
# (a string that was cut in the middle of an emoji), and deep nesting, where its limit depends on Python's version and
# stack. Both are replaced by what it takes, so that the syntax of all the rest is still checked by it.

HALF_PAIR: Final = "half of a surrogate pair"
_BLANK: Final = " \t\r\n\ufeff"
_HALF: Final = b"\xff"
"""The mark of half a surrogate pair. UTF-8 has no such byte, and msgspec looks at that only where it decodes a text."""
_ESCAPED_BACKSLASH: Final = rb"\\"
_HIDDEN: Final = b"\xfe\xfe"
_HIGH: Final = rb"\\u[dD][89abAB][0-9a-fA-F]{2}"
_LOW: Final = rb"\\u[dD][c-fC-F][0-9a-fA-F]{2}"
_halves = re.compile(rb"%b(?!%b)|(?<!%b)%b" % (_HIGH, _LOW, _HIGH, _LOW))
_KEPT_LEVELS: Final = 200
# A string that does not end takes all the rest: tried again at each of its quotes, it would take quadratic time.
_brackets = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"?|[\[{]|[\]}]', re.DOTALL)


def _parse_carefully(text: str, most: int) -> list[ClientFrame | InvalidFrame]:
    if is_blank(text):
        return []
    data = _mark_halves(text.removeprefix("\ufeff").encode())
    try:
        raw = _raw.decode(data)
    except RecursionError:
        raw = Raw(_cut_deep(data))
    data = bytes(raw).strip()
    return _parse_each(_raws.decode(data) if data.startswith(b"[") else [_raw.decode(data)], most)


def _mark_halves(data: bytes) -> bytes:
    """Replace each escape of half a surrogate pair by ``_HALF``."""
    hidden = data.replace(_ESCAPED_BACKSLASH, _HIDDEN)
    return _halves.sub(_HALF, hidden).replace(_HIDDEN, _ESCAPED_BACKSLASH)


def _cut_deep(data: bytes) -> bytes:
    """Replace each value below ``_KEPT_LEVELS`` arrays and objects by a zero, once its syntax is checked.

    Raises ``msgspec.DecodeError`` where it is no JSON.
    """
    # The values being read, from the outermost one inwards, each as the parts of it that are kept.
    values: list[list[bytes]] = [[]]
    begin = depth = 0
    for match in _brackets.finditer(data):
        at = match.start()
        if data[at] in b"[{":
            if depth and depth % _KEPT_LEVELS == 0:
                values[-1].append(data[begin:at])
                values.append([])
                begin = at
            depth += 1
        elif data[at] in b"]}":
            depth -= 1
            if depth > 0 and depth % _KEPT_LEVELS == 0:
                _raw.decode(b"".join((*values.pop(), data[begin : match.end()])))
                values[-1].append(b"0")
                begin = match.end()
            elif depth < 0:
                break
    if depth:
        raise msgspec.DecodeError("arrays or objects do not end")
    return b"".join((*values[0], data[begin:]))


@lru_cache(maxsize=1)  # All that is confirmed with one record has its time.
def at_text(at: int) -> str:
    """RFC 3339 in UTC with milliseconds, of ms since the epoch."""
    return datetime.fromtimestamp(at / 1000, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def at_of(messages: bytes) -> int | None:
    """The time of the first of some messages, in ms since the epoch; ``None`` where it can't be read."""
    # What is before it holds no quotes.
    start = messages.find(b',"at":"', 0, 512) + 7
    try:
        return int(datetime.fromisoformat(messages[start : start + 24].decode("ascii")).timestamp() * 1000)
    except ValueError:
        return None


_body = msgspec.json.Decoder()
MAX_DEPTH: Final = 128
"""The deepest nesting of a body, by our own count: the limits of parsers depend on their versions, and on the stack."""
_strings = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"')
_STEPS: Final = bytes.maketrans(b"[{]}", b"\1\1\xff\xff")
_NO_BRACKETS: Final = bytes(set(range(256)) - set(b"[{]}"))


def _depth(body: bytes) -> int:
    """Return how deep arrays and objects are nested in a JSON text."""
    # As signed bytes: one up, one down. All of it runs in C.
    steps = memoryview(_strings.sub(b"", body).translate(_STEPS, _NO_BRACKETS)).cast("b")
    return max(accumulate(steps), default=0)


def why_no_body(body: bytes) -> str | None:
    """The flaw in a body that a recipient's parser would stumble over, or ``None``.

    Half of a surrogate pair, a number out of range, or nesting past a parser's limit, would end the recipient's client
    on each connection anew.
    """
    if body.count(b"[") + body.count(b"{") > MAX_DEPTH and _depth(body) > MAX_DEPTH:
        return f"nested deeper than {MAX_DEPTH} levels"
    try:
        _body.decode(body)
    except UnicodeDecodeError:
        return HALF_PAIR
    except msgspec.DecodeError as failure:
        return str(failure)
    return None


_encode = msgspec.json.Encoder().encode


def message_tail(message_id: str, sender: str, body: bytes) -> bytes:
    """The JSON object of a message without its beginning, position and time, which are known once it is in the log.

    All but the body is within the id grammar or made here, so nothing needs escaping.
    """
    return b',"id":"%b","from":"%b","body":%b}' % (message_id.encode(), sender.encode(), body)


def welcome(**fields: Any) -> bytes:
    """The answer to hello."""
    return _encode({"type": "welcome", **fields})


def sent(ids: Iterable[str], at: int) -> bytes:
    """The messages of these ids are in the log now, appended ``at`` (ms since the epoch)."""
    text = at_text(at).encode()
    objects = [b'{"type":"sent","id":"%b","at":"%b"}' % (i.encode(), text) for i in ids]
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
