"""Clients that violate the protocol: they are told what was wrong, and harm nobody."""

from __future__ import annotations

import asyncio
import contextlib
import json
from typing import Any

import pytest

from chat_streams.model.position import MAX_INDEX, Position
from clients.python.errors import ConnectionClosed, RequestRefused
from docker.local.layout import HOST
from docker.local.probes import WITHIN_S, Frame, Received, eventually, user
from docker.local.temporary_stack import Stack
from gateway.protocol import PATH
from tests import frames

LONG = "x" * 129
BAD_FRAMES = [
    ("send", {"to": "bob", "body": 1}, "id"),
    ("send", {"id": "m", "body": 1}, "to"),
    ("send", {"id": "m", "to": "bob"}, "body"),
    ("send", {"id": "", "to": "bob", "body": 1}, "id"),
    ("send", {"id": "m n", "to": "bob", "body": 1}, "id"),
    ("send", {"id": LONG, "to": "bob", "body": 1}, "id"),
    ("send", {"id": "m", "to": "bob\n", "body": 1}, "to"),
    ("send", {"id": "m", "to": 'x"},{"', "body": 1}, "to"),
    ("send", {"id": "m", "to": LONG, "body": 1}, "to"),
    ("send", {"id": "m", "to": ["bob"], "body": 1}, "to"),
    ("send", {"id": 1, "to": "bob", "body": 1}, "id"),
    ("ack", {}, "pos"),
    ("ack", {"pos": 1}, "pos"),
    ("ack", {"pos": "1"}, "pos"),
    ("ack", {"pos": "01-0"}, "pos"),
    ("ack", {"pos": "-1-0"}, "pos"),
    ("ack", {"pos": "1-99999999999"}, "pos"),
    ("ack", {"pos": "99999999999999999999-0"}, "pos"),
    ("ack", {"pos": "1-9999999999"}, "pos"),
    ("history", {"with": "bob"}, "ref"),
    ("history", {"ref": "r"}, "with"),
    ("history", {"ref": "r", "with": "bob", "after": "1-0", "until": "2-0"}, "with"),
    ("history", {"ref": "r", "after": "1-0"}, "until"),
    ("history", {"ref": "r", "after": "99999999999999999999-0", "until": "99999999999999999999-1"}, "after"),
    ("history", {"ref": "r", "with": "bob", "limit": 0}, "limit"),
    ("history", {"ref": "r", "with": "bob", "limit": 201}, "limit"),
    ("history", {"ref": "r", "with": "bob", "limit": "many"}, "limit"),
    ("history", {"ref": "r", "with": "bob", "before": ""}, "before"),
    ("history", {"ref": "r", "with": "bob", "before": "\u4e00" * 512}, "before"),
    ("history", {"ref": "r", "with": "b b"}, "with"),
    ("history", {"ref": "r", "after": "1-0", "until": "2-0", "before": "x"}, "before"),
    ("ping", {}, "ref"),
    ("ping", {"ref": LONG}, "ref"),
    ("nonsense", {}, "type"),
    (7, {}, "type"),
]


ANSWERS = ("sent", "refused", "refused_requests", "refused_unnamed", "pong", "pages")


def describe(value: Any) -> str | None:
    return json.dumps(value)[:60] if isinstance(value, dict) else None


@pytest.mark.parametrize(("kind", "fields", "field"), BAD_FRAMES, ids=describe)
async def test_a_bad_frame_is_answered_once_and_the_connection_stays(
    stack: Stack, kind: Any, fields: Frame, field: str
) -> None:
    async with stack.raw(user()) as raw:
        await raw.next_of("caught_up")
        await raw.send({"type": kind} | fields)
        error = await raw.next()
        assert (error["type"], error["retry"]) == ("error", False), error
        assert f"`$.{field}" in error["message"] or f"$.{field}" in error["message"] or f"`{field}`" in error["message"]
        for name in ("id", "ref"):
            if fields.get(name) in ("m", "r"):
                assert error[name] == fields[name]
        await raw.send({"type": "ping", "ref": "p"})
        assert await raw.next() == {"type": "pong", "ref": "p"}


@pytest.mark.parametrize("frame", [{}, [], [1], ["hello"], [[]], [None, {"type": "nonsense"}]], ids=repr)
async def test_json_that_is_no_frame_is_answered_with_errors(stack: Stack, frame: Any) -> None:
    async with stack.raw(user()) as raw:
        await raw.next_of("caught_up")
        await raw.send_text(json.dumps(frame))
        await raw.send({"type": "ping", "ref": "p"})
        answers = []
        while (answer := await raw.next())["type"] != "pong":
            answers.append(answer["type"])
        assert answers == ["error"] * (len(frame) or isinstance(frame, dict))


async def answers(stack: Stack, case: frames.Case) -> frames.Case:
    """Send the frame of a case; returns it with what came back."""
    found: dict[str, list[Any]] = {name: [] for name in ANSWERS}
    async with stack.raw(user()) as raw:
        await raw.next_of("caught_up")
        await raw.send_text(case.frame)
        if case.close is not None:
            return case._replace(close=(await raw.closed()).code)
        # Messages are confirmed, and pages read or refused, behind the answer to what is sent later.
        await raw.send({"type": "ping", "ref": "last"})
        last = False
        while not last or any(len(found[name]) < len(getattr(case, name)) for name in ANSWERS):
            answer = await raw.next()
            name, about = answer["type"], str(answer.get("id", answer.get("ref", "")))
            if name == "error":
                name = "refused" if "id" in answer else "refused_requests" if about else "refused_unnamed"
                found[name].append((about, answer["code"]) if about else answer["code"])
            elif about == "last":
                last = True
            else:
                found["pages" if name == "history" else name].append(about)
    changes: dict[str, Any] = {name: tuple(sorted(found[name])) for name in ANSWERS}
    return case._replace(**changes)


async def test_a_gateway_answers_what_clients_of_other_makers_send(stack: Stack) -> None:
    # At the same time: one after the other they would take long.
    found = await asyncio.gather(*(answers(stack, case) for case in frames.CASES))
    assert {case.name: case for case in found} == {case.name: case for case in frames.CASES}


async def test_valid_objects_of_an_array_count(stack: Stack) -> None:
    alice, bob = user("alice"), user("bob")
    async with stack.raw(alice) as raw:
        await raw.next_of("caught_up")
        await raw.send(
            {"type": "send", "id": "one", "to": bob, "body": 1},
            {"type": "send", "id": "two", "to": "no user", "body": 2},
            {"type": "nonsense", "ref": "three"},
            {"type": "send", "id": "four", "to": bob, "body": 4},
        )
        answers = [await raw.next() for _ in range(4)]
    assert {a.get("id") or a.get("ref"): a["type"] for a in answers} == {
        "one": "sent",
        "two": "error",
        "three": "error",
        "four": "sent",
    }
    async with stack.raw(bob) as raw:
        assert [m["body"] for m in await raw.messages(2)] == [1, 4]


async def test_fields_of_newer_clients_are_ignored(stack: Stack) -> None:
    alice = user("alice")
    async with stack.raw(alice) as raw:
        await raw.send({"type": "send", "id": "m", "to": alice, "body": 1, "colour": "red"})
        assert (await raw.next_of("sent"))["id"] == "m"


@pytest.mark.parametrize(
    "text",
    ["hello", "{", '{"type":"ping","ref":"p"', "[{]", '{"type":"ping","ref":"p"}{}', "\x00", "[" * 100_000],
    ids=lambda text: repr(text[:20]),
)
async def test_invalid_json_ends_the_connection(stack: Stack, text: str) -> None:
    async with stack.raw(user()) as raw:
        await raw.send_text(text)
        assert (await raw.closed()).code == 4503


async def test_a_binary_frame_ends_the_connection(stack: Stack) -> None:
    async with stack.raw(user()) as raw:
        await raw.send_bytes(b'{"type":"ping","ref":"p"}')
        assert (await raw.closed()).code == 4503


async def test_a_second_hello_ends_the_connection(stack: Stack) -> None:
    bob = user("bob")
    async with stack.raw(bob) as raw:
        await raw.send({"type": "hello", "token": stack.token(bob), "device": "other"})
        assert (await raw.closed()).code == 4502


@pytest.mark.parametrize(
    ("frame", "code"),
    [
        ({"type": "ping", "ref": "p"}, 4502),
        ({"type": "send", "id": "m", "to": "bob", "body": 1}, 4502),
        ({"type": "hello"}, 4502),
        ({"type": "hello", "token": "x"}, 4502),
        ({"type": "hello", "token": "x", "device": ""}, 4502),
        ({"type": "hello", "token": "x", "device": "phone", "after": "x"}, 4502),
        ([], 4502),
        ([{"type": "ping", "ref": "p"}] * 2, 4502),
        ("text", 4502),
    ],
    ids=repr,
)
async def test_only_a_hello_may_come_first(stack: Stack, frame: Any, code: int) -> None:
    async with stack.socket() as raw:
        await raw.send_text(json.dumps(frame))
        closed = await raw.closed()
        assert closed.code == code, closed


async def test_a_missing_hello_ends_the_connection(stack: Stack) -> None:
    # A gateway of its own: in other tests a hello may come later than this on a busy machine.
    gateway = await stack.start(stack.service("gateway", hello_timeout=0.5))
    async with stack.socket(gateway.part.url) as raw:
        closed = await raw.closed()
        assert closed.code == 4008
        assert "hello" in closed.reason
    # Nor may a socket on which no request comes, or half of one, stay: it is counted as no connection.
    for sent in (b"", f"GET {PATH} HTTP/1.1\r\nHost: localhost\r\nUpgr".encode()):
        reader, writer = await asyncio.open_connection(HOST, gateway.part.port)
        writer.write(sent)
        async with asyncio.timeout(WITHIN_S):
            assert await reader.read() == b""
        writer.close()
    stack.forget(gateway)


async def test_a_body_that_is_too_large_is_refused_and_the_next_one_is_not(stack: Stack) -> None:
    bob = user("bob")
    async with stack.raw(bob) as raw:
        await raw.next_of("caught_up")
        most = raw.seen[0]["max_body_bytes"]
        await raw.send({"type": "send", "id": "large", "to": bob, "body": "x" * (most - 1)})
        error = await raw.next()
        assert (error["type"], error["code"], error["id"], error["retry"]) == ("error", "too_large", "large", False)
        await raw.send({"type": "send", "id": "most", "to": bob, "body": "x" * (most - 2)})
        assert (await raw.messages(1))[0]["id"] == "most"


async def test_a_frame_that_is_too_large_ends_the_connection(stack: Stack) -> None:
    frame, most = json.dumps({"type": "ping", "ref": "p"}), 512 * 1024
    async with stack.raw(user()) as raw:
        await raw.send_text(frame.ljust(most))
        assert (await raw.next_of("pong"))["ref"] == "p"
        await raw.send_text(frame.ljust(most + 1))
        assert (await raw.closed()).code == 1009
    async with stack.raw(user()) as raw:
        await raw.send_text(json.dumps({"type": "ping", "ref": "x" * 600_000}))
        assert (await raw.closed()).code == 1009


async def test_the_client_does_not_repeat_a_frame_that_is_too_large(stack: Stack) -> None:
    alice = user("alice")
    client = stack.connect(alice, Received())
    await client.__aenter__()
    try:
        # docs/protocol.md: "don't repeat the same frame". Repeated, it would end each new connection, also for all
        # other frames.
        with pytest.raises((ConnectionClosed, RequestRefused)):
            await client.send(alice, "x" * 600_000)
    finally:
        await client.close()


async def test_too_many_objects_in_a_frame_are_refused(stack: Stack) -> None:
    bob = user("bob")
    async with stack.raw(bob) as raw:
        await raw.next_of("caught_up")
        await raw.send(*({"type": "send", "id": f"m{n}", "to": bob, "body": n} for n in range(1_001)))
        error = await raw.next()
        assert (error["type"], error["code"]) == ("error", "too_many")
        await raw.ping()
        assert await stack.stored(bob) == 0


async def test_an_ack_ahead_of_what_was_sent_is_refused(stack: Stack) -> None:
    alice, bob = user("alice"), user("bob")
    await stack.send(alice, bob, range(5))
    await stack.wait_stored(bob, 5)
    async with stack.raw(bob) as raw:
        got = await raw.messages(5)
        last = Position.parse(got[-1]["pos"])
        for ahead in (
            Position(last.entry, last.index + 1),
            Position(last.entry + 1, 0),
            Position(last.entry, MAX_INDEX),
        ):
            await raw.ack(str(ahead))
            assert (await raw.next_of("error"))["code"] == "bad_ack"
        await raw.ack(got[0]["pos"])
        await stack.wait_stored(bob, 4)


async def test_a_user_can_neither_read_nor_acknowledge_the_inbox_of_another(stack: Stack) -> None:
    alice, bob, mallory = user("alice"), user("bob"), user("mallory")
    await stack.send(alice, bob, range(5))
    await stack.wait_stored(bob, 5)
    top = str(await stack.top(bob))
    async with stack.raw(mallory) as raw:
        await raw.next_of("caught_up")
        await raw.ack(top)
        assert (await raw.next_of("error"))["code"] == "bad_ack"
    # As if all was received already, on a device of the same name.
    async with stack.raw(mallory, after=top) as raw:
        await raw.next_of("caught_up")
        await raw.ack(raw.until)
        await raw.ping()
        assert [f for f in raw.seen if f["type"] == "messages"] == []
    async with stack.connect(mallory) as client, stack.connect(bob) as owner:
        until = top

        async def all_of_bobs() -> bool:
            return len((await owner.history_range("0-0", until)).messages) == 5

        await eventually(all_of_bobs)
        with contextlib.suppress(RequestRefused):
            assert (await client.history_range("0-0", until)).messages == []
        assert (await client.history(bob)).messages == []
        assert (await client.history(alice)).messages == []
    assert await stack.stored(bob) == 5
    async with stack.raw(bob) as raw:
        assert [m["body"] for m in await raw.messages(5)] == list(range(5))
