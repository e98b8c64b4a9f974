from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, reject, settings
from hypothesis import strategies as st

from chat_streams.model import ids
from chat_streams.model.codes import Close, ErrorCode
from chat_streams.model.position import MAX_GENERATION, MAX_INDEX, MAX_OFFSET, Position
from chat_streams.model.records import LOGGED, Message
from gateway import protocol
from gateway.protocol import Ack, CloseConnection, Hello, History, InvalidFrame, MalformedJson, Ping, Send
from tests import frames
from tests.frames import HALF, Case

MOST = 10
ID = "Az09._~@:-"
LONG = "x" * 128
AT, AT_TEXT = 1_767_323_045_678, "2026-01-02T03:04:05.678Z"
LOW, HIGH = Position.of(1, 0, 0), Position.of(MAX_GENERATION, MAX_OFFSET, MAX_INDEX)

GOOD: dict[str, dict[str, Any]] = {
    "hello": {"type": "hello", "token": "t", "device": ID},
    "send": {"type": "send", "id": ID, "to": LONG, "body": {"text": "hi"}},
    "ack": {"type": "ack", "pos": str(HIGH)},
    "history": {"type": "history", "ref": "r", "with": ID},
    "ping": {"type": "ping", "ref": "r"},
}
REQUIRED = {
    "hello": ["token", "device"],
    "send": ["id", "to", "body"],
    "ack": ["pos"],
    "history": ["ref"],
    "ping": ["ref"],
}
IDS = [("hello", "device"), ("send", "id"), ("send", "to"), ("history", "with")]
POSITIONS = [("hello", "after"), ("ack", "pos"), ("history", "after"), ("history", "until")]
TEXTS = [("hello", "token", 8_192), ("history", "ref", 128), ("history", "before", 512), ("ping", "ref", 128)]

hypothesis = settings(deadline=None, max_examples=150)


def parse_one(frame: Any) -> Any:
    found = protocol.parse(frame if isinstance(frame, str) else json.dumps(frame), MOST)
    assert len(found) == 1
    return found[0]


def refusal(frame: Any) -> dict[str, Any]:
    found = parse_one(frame)
    assert isinstance(found, InvalidFrame)
    fields: dict[str, Any] = json.loads(found.frame)
    assert set(fields) - {"id", "ref"} == {"type", "code", "message", "retry"}
    assert (fields["type"], fields["retry"]) == ("error", False)
    return fields


def assert_names(fields: dict[str, Any], name: str) -> None:
    assert fields["code"] == "bad_frame"
    assert f"`$.{name}`" in fields["message"] or f"`{name}`" in fields["message"]


# What clients send


def test_every_frame_is_understood() -> None:
    assert parse_one(GOOD["hello"]) == Hello("t", ID)
    assert parse_one(GOOD["hello"] | {"after": str(LOW)}) == Hello("t", ID, str(LOW))
    assert parse_one(GOOD["hello"] | {"after": None}) == Hello("t", ID)
    send = parse_one(GOOD["send"])
    assert isinstance(send, Send)
    assert (send.id, send.to, json.loads(bytes(send.body))) == (ID, LONG, {"text": "hi"})
    assert parse_one(GOOD["ack"]) == Ack(str(HIGH))
    assert parse_one(GOOD["history"]) == History("r", ID)
    page = {"type": "history", "ref": "", "after": "0-0", "until": str(HIGH), "before": "x" * 512, "limit": 200}
    assert parse_one(page) == History("", None, "x" * 512, "0-0", str(HIGH), 200)
    assert parse_one(GOOD["ping"]) == Ping("r")


@pytest.mark.parametrize("kind", GOOD)
def test_fields_of_a_newer_client_are_ignored(kind: str) -> None:
    assert not isinstance(parse_one(GOOD[kind] | {"new": [{"type": "ack"}]}), InvalidFrame)


@pytest.mark.parametrize("kind", GOOD)
def test_the_type_may_come_last(kind: str) -> None:
    fields = {k: v for k, v in GOOD[kind].items() if k != "type"} | {"type": kind}
    assert type(parse_one(fields)) is type(parse_one(GOOD[kind]))


@pytest.mark.parametrize(("kind", "name"), [(k, name) for k, names in REQUIRED.items() for name in ["type", *names]])
def test_a_missing_field_is_named(kind: str, name: str) -> None:
    assert_names(refusal({k: v for k, v in GOOD[kind].items() if k != name}), name)


@pytest.mark.parametrize(
    ("kind", "name"), sorted({(k, n) for k, n in [*IDS, *POSITIONS, *((k, n) for k, n, _ in TEXTS)]})
)
@pytest.mark.parametrize("value", [1, 1.5, True, ["x"], {"x": "y"}])
def test_a_field_of_a_wrong_type_is_named(kind: str, name: str, value: Any) -> None:
    assert_names(refusal(GOOD[kind] | {name: value}), name)


@pytest.mark.parametrize(("kind", "name"), [(k, n) for k, names in REQUIRED.items() for n in names if n != "body"])
def test_null_is_no_value_of_a_required_field(kind: str, name: str) -> None:
    assert_names(refusal(GOOD[kind] | {name: None}), name)


@pytest.mark.parametrize(("kind", "name"), IDS)
@pytest.mark.parametrize(
    "value",
    [
        "",
        LONG + "x",
        "a b",
        "a\n",
        "\na",
        "a\r\n",
        "a\0",
        "a/b",
        "a#b",
        "{a}",
        "a,b",
        'a"b',
        "a\\b",
        "\u00e4",
        "\uff41",
    ],
)
def test_what_is_no_id_is_named(kind: str, name: str, value: str) -> None:
    assert_names(refusal(GOOD[kind] | {name: value}), name)
    assert not ids.is_id(value)


@given(st.text("AZaz09._~@:-", min_size=1, max_size=128))
@hypothesis
def test_what_is_in_the_grammar_is_an_id(value: str) -> None:
    assert ids.is_id(value)
    assert parse_one(GOOD["send"] | {"id": value}).id == value


@pytest.mark.parametrize("value", [None, 1, b"alice", ["alice"]])
def test_only_text_is_an_id(value: object) -> None:
    assert not ids.is_id(value)


@pytest.mark.parametrize(("kind", "name"), POSITIONS)
@pytest.mark.parametrize(
    "value",
    [
        *("", "1", "1-", "01-0", "1-00", "1-0\n", " 1-0", "-1-0", "1-0-0", "\uff11-0", "9" * 5_000 + "-0"),
        *("18446744073709551616-0", "99999999999999999999-0", "1-4294967296"),
    ],
)
def test_what_is_no_position_is_named(kind: str, name: str, value: str) -> None:
    assert_names(refusal(GOOD[kind] | {name: value}), name)


@given(st.from_regex(r"\A[0-9]{1,20}-[0-9]{1,10}\Z"))
@hypothesis
def test_an_accepted_position_can_be_used(text: str) -> None:
    found = parse_one({"type": "ack", "pos": text})
    if isinstance(found, Ack):
        assert str(Position.parse(found.pos)) == text


@pytest.mark.parametrize(("kind", "name", "most"), TEXTS)
def test_a_text_that_is_too_long_is_named(kind: str, name: str, most: int) -> None:
    assert not isinstance(parse_one(GOOD[kind] | {name: "x" * most}), InvalidFrame)
    assert_names(refusal(GOOD[kind] | {name: "x" * (most + 1)}), name)


@pytest.mark.parametrize("limit", [0, -1, 201, 1 << 70, 1.5, 200.5, "1", True])
def test_a_limit_out_of_bounds_is_named(limit: Any) -> None:
    assert_names(refusal(GOOD["history"] | {"limit": limit}), "limit")


@pytest.mark.parametrize(("limit", "size"), [(1, 1), (200, 200), (7.0, 7), (None, protocol.DEFAULT_HISTORY)])
def test_a_limit_is_any_json_number_that_is_whole(limit: Any, size: int) -> None:
    found = parse_one(GOOD["history"] | {"limit": limit})
    assert isinstance(found, History)
    assert (found.page_size, type(found.page_size)) == (size, int)


@pytest.mark.parametrize("kind", ["", "HELLO", "welcome", "send ", 5, None])
def test_an_unknown_type_is_said_to_be_one(kind: Any) -> None:
    fields = refusal({"type": kind, "id": "a", "ref": "b"})
    assert fields["code"] == "unknown_type"
    assert (fields["id"], fields["ref"]) == ("a", "b")


@pytest.mark.parametrize("frame", ["null", "1", '"hello"', "true", "[1]", "[[]]", "[null]"])
def test_what_is_no_object_is_refused(frame: str) -> None:
    assert refusal(frame)["code"] == "bad_frame"


def test_an_error_carries_the_id_of_what_it_is_about() -> None:
    assert refusal({"type": "send", "id": "7", "to": "a b", "body": 1})["id"] == "7"
    assert "id" not in refusal({"type": "send", "id": "a b", "to": "x", "body": 1})
    assert "id" not in refusal({"type": "send", "id": 7, "to": "x", "body": 1})


@pytest.mark.parametrize("ref", ["", "r", "of the client's own, \u00e4\n", "r" * 128])
def test_an_error_carries_any_ref_a_client_may_use(ref: str) -> None:
    assert refusal({"type": "history", "ref": ref, "limit": 0})["ref"] == ref


def test_an_error_carries_no_ref_that_is_none() -> None:
    assert "ref" not in refusal({"type": "ping", "ref": "r" * 129})
    assert "ref" not in refusal({"type": "ping", "ref": {"r": 1}})


# Arrays


def test_an_array_is_understood_in_its_order() -> None:
    frames = [GOOD["ping"] | {"ref": str(i)} for i in range(MOST)]
    assert protocol.parse(" \n" + json.dumps(frames), MOST) == [Ping(str(i)) for i in range(MOST)]
    assert protocol.parse("[]", MOST) == []


@pytest.mark.parametrize(
    ("bad", "name", "reference"),
    [
        ({"type": "send", "id": "7", "to": "a b", "body": 1}, "to", {"id": "7"}),
        ({"type": "send", "id": "7", "to": "b"}, "body", {"id": "7"}),
        ({"type": "history", "ref": "my ref", "limit": 0}, "limit", {"ref": "my ref"}),
        ({"type": "ack", "pos": "99999999999999999999-0"}, "pos", {}),
        ({"type": "nope", "id": "7"}, "type", {"id": "7"}),
        ([], "object", {}),
    ],
)
def test_one_bad_object_spoils_no_other(bad: Any, name: str, reference: dict[str, str]) -> None:
    before, found, after = protocol.parse(json.dumps([GOOD["send"], bad, GOOD["ping"]]), MOST)
    assert isinstance(before, Send)
    assert (before.id, bytes(before.body)) == (ID, b'{"text": "hi"}')
    assert after == Ping("r")
    assert isinstance(found, InvalidFrame)
    fields = json.loads(found.frame)
    assert name in fields["message"]
    assert {k: fields[k] for k in ("id", "ref") if k in fields} == reference


@pytest.mark.parametrize("objects", [[{"type": "ping", "ref": "r"}], [1], [{"type": "ping", "ref": "r"}, 1]])
def test_too_many_objects_are_refused_as_a_whole(objects: list[Any]) -> None:
    text = json.dumps((objects * (MOST + 1))[: MOST + 1])
    with pytest.raises(InvalidFrame) as caught:
        protocol.parse(text, MOST)
    fields = json.loads(caught.value.frame)
    assert (fields["code"], fields["retry"]) == ("too_many", False)
    assert len(protocol.parse(json.dumps((objects * MOST)[:MOST]), MOST)) == MOST


# What is no JSON


NOT_JSON = [
    *("{", "[", "}", "hello", "{'type':'ping'}", "\ufeff{", "[1,]", '{"type":"ping","ref":"a"}}'),
    *('{"type":"ping","ref":"a"} x', '[{"type":"ping","ref":"a"}] x', '{"type":"ping","ref":"a"}{"type":"ping"}'),
    # Refused for another reason before the end is reached:
    *('{"type":"nope"', '[{"type":"nope"},', '[{"type":"nope"}, {bad', '{"type":"ack","pos":1', "[1"),
]


@pytest.mark.parametrize("text", NOT_JSON)
def test_what_is_not_json(text: str) -> None:
    with pytest.raises(MalformedJson):
        protocol.parse(text, MOST)


@pytest.mark.parametrize(
    "body",
    [
        *("", "01", "+1", "1.", "-", "1e", "NaN", "Infinity", "nul", "[1,]", "{1:2}", "{,}", "'a'", '"', "[}"),
        *(r'"\x"', r'"\u12"', '"\n"', '"\0"', r'"\ud800\u12"', '"a"b'),
    ],
)
def test_a_body_that_is_not_json_never_reaches_a_recipient(body: str) -> None:
    send = f'{{"type":"send","id":"a","to":"b","body":{body}}}'
    for text in (send, f'[{send},{{"type":"ping","ref":"r"}}]', f'[{{"type":"nope"}},{send}]'):
        with pytest.raises(MalformedJson):
            protocol.parse(text, MOST)


def answers(text: str) -> Case:
    """The answers of a gateway whose log and history are there."""
    sent, refused, refused_requests, refused_unnamed, pong, pages = [], [], [], [], [], []
    try:
        found = protocol.parse(text, 1_000)
    except CloseConnection as end:
        return Case("", text, close=end.code)
    for frame in found:
        if isinstance(frame, InvalidFrame):
            fields = json.loads(frame.frame)
            if "id" in fields:
                refused.append((fields["id"], fields["code"]))
            elif "ref" in fields:
                refused_requests.append((fields["ref"], fields["code"]))
            else:
                refused_unnamed.append(fields["code"])
        elif isinstance(frame, Send):
            if protocol.why_no_body(bytes(frame.body)) is None:
                sent.append(frame.id)
            else:
                refused.append((frame.id, "bad_body"))
        elif isinstance(frame, History):
            if frame.before == "garbage":
                refused_requests.append((frame.ref, "bad_frame"))
            else:
                pages.append(frame.ref)
        elif isinstance(frame, Ping):
            pong.append(frame.ref)
    return Case(
        *("", text, tuple(sent), tuple(refused), tuple(refused_requests), tuple(refused_unnamed)),
        *(tuple(pong), tuple(pages)),
    )


@pytest.mark.parametrize("case", frames.CASES, ids=lambda case: case.name)
def test_an_error_about_one_object_is_about_this_object_alone(case: Case) -> None:
    assert answers(case.frame) == case._replace(name="")


@pytest.mark.parametrize("case", frames.CASES, ids=lambda case: case.name)
def test_the_answers_are_the_same_however_little_stack_a_python_has(
    case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On each Python msgspec refuses other depths: as if that were all it ever answers."""

    def parse(text: str, most: int) -> Any:
        raise RecursionError

    monkeypatch.setattr(protocol, "_parse", parse)
    assert answers(case.frame) == case._replace(name="")


def test_only_a_careful_look_needs_leave() -> None:
    asked: list[int] = []

    def look(size: int) -> float:
        asked.append(size)
        return 1.5

    for case in frames.CASES:
        try:
            protocol.parse(case.frame, 1_000, look)
        except InvalidFrame as refused:
            fields = json.loads(refused.frame)
            assert (fields["code"], fields["retry"], fields["retry_in_ms"]) == ("rate_limited", True, 1_500)
            assert asked.pop() == len(case.frame)
        assert asked == []


pieces = st.sampled_from([
    *(r"\ud83d", r"\ude00", r"\\", r"\u0041", r"\"", "\\", '"', "x", ",", ":", "[", "]", "{", "}", "0", " "),
    *('{"type":"ping","ref":"7"', ',"x":', "[" * 300, "]" * 300, '{"a":' * 150, "}" * 150),
])  # fmt: skip


@given(st.lists(pieces, max_size=12).map("".join))
@settings(deadline=None, max_examples=400)
def test_the_careful_parser_takes_what_is_json_and_nothing_else(value: str) -> None:
    text = f'{{"type":"ping","ref":"7","x":{value}}}'
    try:
        json.loads(text)
    except RecursionError:
        # The judge cannot tell: how deep it goes depends on the Python.
        reject()
    except ValueError:
        assert answers(text).close == 4503
    else:
        assert answers(text).close is None


def test_a_careful_look_at_the_largest_frame_takes_no_quadratic_time() -> None:
    # Each of these took minutes with a pattern that begins anew at each quote, bracket or backslash.
    for filling in ('"' + '\\"' * 250_000, "[" * 500_000, '{"":' * 125_000, "\\" * 500_000, r"\ud83d" * 80_000):
        answers(f'{{"type":"ping","ref":"7","x":{filling}')
        answers(f'{{"type":"ping","ref":"7","x":"{HALF}{filling}')


@given(
    st.text(max_size=40)
    | st.builds(
        "".join,
        st.lists(st.sampled_from(['{"type":"ping"', ',"ref":"a"', "}", "[", "]", ",", "1", '"', " "]), max_size=9),
    )
)
@settings(deadline=None, max_examples=300)
def test_any_text_is_understood_or_refused(text: str) -> None:
    try:
        found = protocol.parse(text, MOST)
    except (MalformedJson, InvalidFrame):
        return
    if not protocol.is_blank(text):
        json.loads(text)
    assert all(isinstance(f, InvalidFrame | Hello | Send | Ack | History | Ping) for f in found)


# Bodies

bodies = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(bodies, st.booleans(), st.sampled_from([None, 1]), st.booleans())
@hypothesis
def test_a_body_is_kept_byte_for_byte(body: Any, ascii_only: bool, indent: int | None, in_array: bool) -> None:
    text = json.dumps(body, ensure_ascii=ascii_only, indent=indent).encode("utf-8", "replace").decode()
    send = f'{{"type":"send","id":"a","body":{text} , "to":"b"}}'
    # An object that is not understood beside it makes no difference.
    found = protocol.parse(f'[1,{send},{{"type":"ping","ref":"r"}}]' if in_array else send, MOST)[int(in_array)]
    assert isinstance(found, Send)
    assert bytes(found.body) == text.encode()


@pytest.mark.parametrize(
    "text",
    [
        "1e2",
        "1.0",
        "-0",
        "1E+2",
        "12345678901234567890123",
        "0.1000",
        r'"\u0041\/\ud83d\ude00"',
        '{"a":1,"a":2}',
        "[ ]",
    ],
)
def test_a_body_is_not_written_anew(text: str) -> None:
    found = parse_one(f'{{"type":"send","id":"a","to":"b","body":{text}}}')
    assert bytes(found.body) == text.encode()


# What the server sends


def test_the_frames_of_the_server() -> None:
    welcome = {"user": "bob", "device": "d", "connection": "00", "after": "0-0", "heartbeat_s": 30.0, "window": 3}
    references: list[dict[str, str]] = [{"id": "7"}, {"ref": 'r"\n'}, {}]
    assert json.loads(protocol.welcome(**welcome)) == {"type": "welcome", **welcome}
    assert json.loads(protocol.sent(["7"], AT)) == {"type": "sent", "id": "7", "at": AT_TEXT}
    assert json.loads(protocol.sent(map(str, range(2)), AT)) == [
        {"type": "sent", "id": "0", "at": AT_TEXT},
        {"type": "sent", "id": "1", "at": AT_TEXT},
    ]
    assert json.loads(protocol.missed(LOW, HIGH)) == {"type": "missed", "after": str(LOW), "until": str(HIGH)}
    assert json.loads(protocol.caught_up(HIGH)) == {"type": "caught_up", "pos": str(HIGH)}
    assert json.loads(protocol.pong('r"\n')) == {"type": "pong", "ref": 'r"\n'}
    assert json.loads(protocol.goodbye("why", 7)) == {"type": "goodbye", "reason": "why", "reconnect_in_ms": 7}
    for reference in references:
        assert json.loads(protocol.error(ErrorCode.BUSY, 'what "x"', **reference)) == {
            "type": "error",
            "code": "busy",
            "message": 'what "x"',
            "retry": True,
            **reference,
        }
    assert json.loads(protocol.history('r"', [b'{"a":1}', b"{}"], None)) == {
        "type": "history",
        "ref": 'r"',
        "messages": [{"a": 1}, {}],
        "before": None,
    }
    assert json.loads(protocol.history("r", [], 'c"')) == {
        "type": "history",
        "ref": "r",
        "messages": [],
        "before": 'c"',
    }
    assert json.loads(protocol.messages(LOW, HIGH, b"")) == {
        "type": "messages",
        "after": str(LOW),
        "until": str(HIGH),
        "messages": [],
    }


def as_utf_8(body: Any) -> Any:
    return json.loads(json.dumps(body).encode("utf-8", "replace"))


@given(st.lists(bodies, min_size=1, max_size=3), st.booleans())
@hypothesis
def test_a_message_arrives_as_it_was_sent(sent: list[Any], ascii_only: bool) -> None:
    positions = [Position.of(1, 5, i) for i in range(len(sent))]
    objects = []
    for position, body in zip(positions, sent, strict=True):
        raw = json.dumps(body, ensure_ascii=ascii_only).encode("utf-8", "replace")
        message = Message("bob", LONG, ID, LOGGED, protocol.message_tail(ID, LONG, raw))
        objects.append(message.json_at(str(position), AT))
    assert protocol.at_of(b",".join(objects)) == AT
    assert json.loads(protocol.messages(LOW, HIGH, b",".join(objects)))["messages"] == [
        {"pos": str(p), "at": AT_TEXT, "id": ID, "from": LONG, "body": as_utf_8(b)}
        for p, b in zip(positions, sent, strict=True)
    ]


@pytest.mark.parametrize(
    ("at", "text"),
    [
        (0, "1970-01-01T00:00:00.000Z"),
        (1_767_323_045_678, "2026-01-02T03:04:05.678Z"),
        (1_767_323_045_600, "2026-01-02T03:04:05.600Z"),
        (1_709_164_799_999, "2024-02-28T23:59:59.999Z"),
    ],
)
def test_times_are_rfc_3339_in_utc_with_milliseconds(at: int, text: str) -> None:
    assert protocol.at_text(at) == text


@given(st.integers(0, 4_102_444_800_000))
@hypothesis
def test_times_sort_as_texts(at: int) -> None:
    assert protocol.at_text(at) < protocol.at_text(at + 1)
    assert len(protocol.at_text(at)) == 24


def test_close_codes_say_whether_to_come_back() -> None:
    again = {Close.GOING_AWAY, Close.HELLO_TIMEOUT, Close.STORE_AWAY, Close.KEYS_AWAY, Close.TOKEN_EXPIRED}
    again |= {Close.TOO_MANY_CONNECTS, Close.FAILED}
    assert {c for c in Close if 4000 <= c < 4500} == again
    assert all(4500 <= c < 5000 for c in Close if c not in again)
    assert (Close.TOKEN_EXPIRED, Close.BAD_TOKEN, Close.BAD_SEQUENCE, Close.TAKEN_OVER) == (4401, 4501, 4502, 4510)


@pytest.mark.parametrize(
    "body", [b"1e400", b"9" * 5_000, b"[" * 5_000 + b"]" * 5_000, b'{"a":' * 2_000 + b"1" + b"}" * 2_000]
)
def test_a_body_that_would_end_each_client_that_receives_it_is_refused(body: bytes) -> None:
    assert protocol.why_no_body(body)


@pytest.mark.parametrize(("levels", "refused"), [(protocol.MAX_DEPTH, False), (protocol.MAX_DEPTH + 1, True)])
@pytest.mark.parametrize(("begin", "end"), [(b"[", b"]"), (b'{"]\\"}":', b"}"), (b'["[{",', b"]")])
def test_a_body_may_be_nested_so_deep_on_each_python(levels: int, refused: bool, begin: bytes, end: bytes) -> None:
    body = begin * levels + b"1" + end * levels
    assert (protocol.why_no_body(body) is not None) == refused


@pytest.mark.parametrize(
    "body", [b'"text"', b"null", b"-1.5e300", b"[" * 90 + b"]" * 90, b"[" + b",".join([b"[1]"] * 500) + b"]"]
)
def test_other_bodies_are_taken(body: bytes) -> None:
    assert protocol.why_no_body(body) is None
