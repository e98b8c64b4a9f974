"""The reference client against a scripted server: each script is one connection."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import msgspec
import pytest
from aiohttp import WSMsgType, web
from hypothesis import given
from hypothesis import strategies as st

from clients.python import client as client_module
from clients.python.client import Client, Message, RecipientQueues, Sent, _Call, _Send, all_sent, decode
from clients.python.codes import is_final
from clients.python.errors import (
    ChainBroken,
    ChatError,
    ConnectionClosed,
    RequestRefused,
    RequestTimeout,
    SendTimeout,
)
from docker.local.probes import WITHIN_S

AT = "2026-01-02T03:04:05.678Z"


class Peer:
    """The server's side of one connection, after hello."""

    def __init__(self, ws: web.WebSocketResponse) -> None:
        self.ws = ws
        self.hello: dict[str, Any] = {}
        self._objects: list[dict[str, Any]] = []

    async def next(self) -> dict[str, Any]:
        """Get the client's next object, out of an array or alone."""
        if not self._objects:
            message = await self.ws.receive()
            assert message.type is WSMsgType.TEXT, message
            found = msgspec.json.decode(message.data)
            self._objects = found if isinstance(found, list) else [found]
        return self._objects.pop(0)

    async def take(self, count: int) -> list[dict[str, Any]]:
        return [await self.next() for _ in range(count)]

    async def say(self, *frames: dict[str, Any]) -> None:
        data = frames[0] if len(frames) == 1 else list(frames)
        await self.ws.send_str(msgspec.json.encode(data).decode())

    async def welcome(self, after: str = "p0") -> None:
        await self.say({"type": "welcome", "user": "bob", "device": "d", "connection": "c", "after": after})

    async def confirm(self, *ids: str) -> None:
        await self.say(*({"type": "sent", "id": id_, "at": AT} for id_ in ids))

    async def refuse(self, *ids: str, retry: bool) -> None:
        frames = [{"type": "error", "code": "c", "message": "no", "retry": retry, "id": id_} for id_ in ids]
        await self.say(*frames)

    async def until_closed(self) -> None:
        while (await self.ws.receive()).type is WSMsgType.TEXT:
            pass


Script = Callable[[Peer], Awaitable[None]]


class Server:
    def __init__(self, scripts: tuple[Script, ...]) -> None:
        self.scripts = list(scripts)
        self.hellos: list[dict[str, Any]] = []
        self.failures: list[BaseException] = []
        self.url = ""

    async def handle(self, request: web.Request) -> web.StreamResponse:
        ws = web.WebSocketResponse(protocols=("chat.v1",))
        await ws.prepare(request)
        peer = Peer(ws)
        peer.hello = await peer.next()
        self.hellos.append(peer.hello)
        try:
            await self.scripts.pop(0)(peer)
        except (AssertionError, IndexError) as failure:
            self.failures.append(failure)
        return ws


@contextlib.asynccontextmanager
async def serving(*scripts: Script) -> AsyncIterator[Server]:
    server = Server(scripts)
    app = web.Application()
    app.router.add_get("/v1/connect", server.handle)
    runner = web.AppRunner(app, shutdown_timeout=1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    server.url = f"ws://127.0.0.1:{runner.addresses[0][1]}/v1/connect"
    try:
        async with asyncio.timeout(WITHIN_S):
            yield server
    finally:
        await runner.cleanup()
    assert not server.failures
    assert not server.scripts, "a connection was not made"


@pytest.fixture(autouse=True)
def _fast_backoff(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client_module, "BACKOFF_S", 0.01)


def messages(after: str, until: str, *positions: str) -> dict[str, Any]:
    found = [{"pos": pos, "id": f"m{pos}", "from": "alice", "at": AT, "body": {"n": pos}} for pos in positions]
    return {"type": "messages", "after": after, "until": until, "messages": found}


class Inbox:
    """A callback that keeps the messages it gets."""

    def __init__(self) -> None:
        self.positions: list[str] = []
        self.batches: asyncio.Queue[list[str]] = asyncio.Queue()

    async def __call__(self, batch: list[Message]) -> None:
        positions = [message.pos for message in batch]
        self.positions += positions
        self.batches.put_nowait(positions)


def test_a_frame_of_an_unknown_type_is_left_out() -> None:
    data = b'[{"type":"weather","sun":1},{"type":"sent","id":"a","at":"t","more":2}]'
    assert decode(data) == [Sent("a", "t")]
    assert decode(b'{"type":"weather"}') == []
    with pytest.raises(msgspec.DecodeError):
        decode(b'{"type":"sent","id":"a"}')
    with pytest.raises(msgspec.DecodeError):
        decode(b"nonsense")


@pytest.mark.parametrize(("code", "final"), [(1006, False), (4000, False), (4499, False), (4500, True), (4999, True)])
def test_close_codes_from_4500_on_are_final(code: int, final: bool) -> None:
    assert is_final(code) is final


def test_backoff_has_full_jitter_below_a_limit() -> None:
    waits = [client_module.backoff_s(attempt) for attempt in range(1_000)]
    assert max(waits) <= client_module.BACKOFF_LIMIT_S
    assert min(waits) < 1 < max(waits)


async def test_a_client_says_hello_and_sends_one_message_or_many() -> None:
    async def script(peer: Peer) -> None:
        await peer.welcome()
        first = await peer.next()
        assert first == {"type": "send", "id": "mine", "to": "carol", "body": {"text": "ciao"}}
        await peer.confirm("mine")
        rest = await peer.take(3)
        assert [(send["to"], send["body"]) for send in rest] == [("a", 1), ("b", 2), ("a", 3)]
        await peer.confirm(*(send["id"] for send in reversed(rest)))
        await peer.until_closed()

    async with serving(script) as server:
        async with Client(server.url, "jwt", "d", after="p7") as client:
            assert client.welcome is not None
            assert client.welcome.user == "bob"
            assert await client.send("carol", {"text": "ciao"}, id="mine") == Sent("mine", AT)
            sent = all_sent(await client.send_many([("a", 1), ("b", 2), ("a", 3)]))
            assert len({one.id for one in sent}) == 3
            assert await client.send_many([]) == []
        assert server.hellos == [{"type": "hello", "token": "jwt", "device": "d", "after": "p7"}]


async def test_a_client_has_no_more_messages_in_flight_than_allowed() -> None:
    async def script(peer: Peer) -> None:
        await peer.welcome()
        first = await peer.take(3)
        # The client had the chance to send more before this ping, and did not.
        assert (await peer.next())["type"] == "ping"
        await peer.confirm(*(send["id"] for send in first))
        await peer.say({"type": "pong", "ref": "never asked"})
        second = await peer.take(2)
        await peer.confirm(*(send["id"] for send in second))
        assert [send["body"] for send in first + second] == [0, 1, 2, 3, 4]
        await peer.until_closed()

    async with serving(script) as server, Client(server.url, "jwt", "d", in_flight=3) as client:
        sending = asyncio.create_task(client.send_many([("a", n) for n in range(5)]))
        await asyncio.sleep(0)
        ping = asyncio.create_task(client.ping())
        await sending
        ping.cancel()


async def test_a_failure_sends_all_behind_it_again_in_order_after_the_last_answer() -> None:
    async def script(peer: Peer) -> None:
        await peer.welcome()
        seven = await peer.take(7)
        (ref,) = (frame["ref"] for frame in seven if frame["type"] == "ping")
        sends = {frame["body"]: frame["id"] for frame in seven if frame["type"] == "send"}
        await peer.confirm(sends["a0"])
        await peer.refuse(sends["a1"], retry=True)
        await peer.say({"type": "pong", "ref": ref})
        # A message to another recipient is sent; one to this recipient waits for the answers about a2 and a3.
        assert (await peer.next())["body"] == "b1"
        await peer.confirm(sends["b0"], sends["a2"])
        await peer.refuse(sends["a3"], sends["a4"], retry=True)
        again = await peer.take(4)
        assert [send["body"] for send in again] == ["a1", "a3", "a4", "a5"]
        assert again[0]["id"] == sends["a1"]
        # They fail once more, all of them.
        await peer.refuse(*(send["id"] for send in again), retry=True)
        assert await peer.take(4) == again
        await peer.confirm(*(send["id"] for send in again))
        last = await peer.next()
        assert last["body"] == "last"
        await peer.confirm(last["id"])
        await peer.until_closed()

    async with serving(script) as server, Client(server.url, "jwt", "d") as client:
        first = [("a", "a0"), ("a", "a1"), ("a", "a2"), ("a", "a3"), ("a", "a4"), ("b", "b0")]
        sending = asyncio.create_task(client.send_many(first))
        await client.ping()
        later = [asyncio.create_task(client.send(to, body)) for to, body in (("a", "a5"), ("b", "b1"))]
        assert len(await sending) == 6
        # b1 has no confirmation in the script; a reconnect would send it again, so the end of the test cancels it.
        await later[0]
        await client.send("a", "last")
        later[1].cancel()


async def test_a_refusal_is_raised_and_leaves_the_others_alone() -> None:
    async def script(peer: Peer) -> None:
        await peer.welcome()
        one, two = await peer.take(2)
        await peer.refuse(one["id"], retry=False)
        await peer.confirm(two["id"])
        request = await peer.next()
        error = {"type": "error", "code": "bad_cursor", "message": "no", "retry": False, "ref": request["ref"]}
        await peer.say(error)
        await peer.until_closed()

    async with serving(script) as server, Client(server.url, "jwt", "d") as client:
        refused, accepted = asyncio.create_task(client.send("a", 1)), asyncio.create_task(client.send("a", 2))
        with pytest.raises(RequestRefused) as caught:
            await refused
        assert (caught.value.code, caught.value.retry) == ("c", False)
        assert (await accepted).at == AT
        with pytest.raises(RequestRefused, match="bad_cursor"):
            await client.history("carol", before="nonsense")


async def test_many_messages_have_a_result_each() -> None:
    async def script(peer: Peer) -> None:
        await peer.welcome()
        sends = {send["body"]: send["id"] for send in await peer.take(4)}
        await peer.refuse(sends["refused"], retry=False)
        await peer.confirm(sends["first"], sends["last"])
        await peer.until_closed()

    async with serving(script) as server, Client(server.url, "jwt", "d") as client:
        timeout_s, client._timeout_s = client._timeout_s, 1.0
        bodies = ["first", "half \ud83d", object(), "x" * 100_000, "refused", "lost", "last"]
        results = await client.send_many(("a", body) for body in bodies)
        client._timeout_s = timeout_s
        codes = [result.code for result in results if isinstance(result, RequestRefused)]
        assert codes == ["bad_body", "bad_body", "too_large", "c"]
        kinds = [type(result) for result in results]
        assert kinds == [Sent, RequestRefused, RequestRefused, RequestRefused, RequestRefused, SendTimeout, Sent]
        with pytest.raises(RequestRefused, match="bad_body"):
            all_sent(results)


async def test_what_is_sent_when_the_client_has_ended_has_the_error_as_its_result() -> None:
    async def script(peer: Peer) -> None:
        await peer.welcome()
        await peer.confirm((await peer.next())["id"])
        await peer.ws.close(code=4510)

    async with serving(script) as server:
        client = Client(server.url, "jwt", "d", in_flight=1)
        await client.__aenter__()
        results = await client.send_many(("a", n) for n in range(3))
        assert [type(result) for result in results] == [Sent, ConnectionClosed, ConnectionClosed]
        await client.close()


async def test_unconfirmed_messages_are_sent_again_on_the_next_connection() -> None:
    seen: list[dict[str, Any]] = []

    async def dies(peer: Peer) -> None:
        await peer.welcome()
        seen.extend(await peer.take(4))
        await peer.confirm(seen[1]["id"])
        await peer.refuse(seen[2]["id"], retry=True)
        assert peer.ws._req is not None
        assert peer.ws._req.transport is not None
        await peer.ws.send_str('{"type":"pong","ref":"x"}')
        peer.ws._req.transport.close()

    async def lives(peer: Peer) -> None:
        await peer.welcome()
        again = await peer.take(3)
        assert again == [seen[0], seen[2], seen[3]]
        await peer.confirm(*(send["id"] for send in again))
        await peer.until_closed()

    async with serving(dies, lives) as server, Client(server.url, "jwt", "d") as client:
        sent = all_sent(await client.send_many([("a", n) for n in range(4)]))
        assert [one.id for one in sent] == [send["id"] for send in seen]


async def test_a_send_without_an_answer_times_out_and_frees_its_place() -> None:
    async def script(peer: Peer) -> None:
        await peer.welcome()
        await peer.next()
        second = await peer.next()
        await peer.confirm(second["id"])
        await peer.until_closed()

    async with serving(script) as server, Client(server.url, "jwt", "d", in_flight=1) as client:
        # The short timeout is for the first send only: the welcome and the second answer may take longer.
        timeout_s, client._timeout_s = client._timeout_s, 0.1
        with pytest.raises(TimeoutError, match="lost-one"):
            await client.send("a", 1, id="lost-one")
        client._timeout_s = timeout_s
        await client.send("a", 2)


async def test_an_id_in_flight_is_not_taken_twice() -> None:
    async def script(peer: Peer) -> None:
        await peer.welcome()
        await peer.next()
        await peer.confirm("x")
        await peer.until_closed()

    async with serving(script) as server, Client(server.url, "jwt", "d") as client:
        first = asyncio.create_task(client.send("a", 1, id="x"))
        await asyncio.sleep(0)
        with pytest.raises(ValueError, match="already"):
            await client.send("a", 1, id="x")
        await first


async def test_messages_are_acknowledged_after_the_callback_and_caught_up_follows() -> None:
    may_return = asyncio.Event()
    inbox = Inbox()

    async def callback(batch: list[Message]) -> None:
        await inbox(batch)
        await may_return.wait()

    async def script(peer: Peer) -> None:
        await peer.welcome("p0")
        await peer.say(messages("p0", "p2", "p1", "p2"), {"type": "caught_up", "pos": "p2"})
        # The ping comes first although it was asked for later: the callback had not returned.
        assert (await peer.next())["type"] == "ping"
        may_return.set()
        assert await peer.next() == {"type": "ack", "pos": "p2"}
        await peer.until_closed()

    async with serving(script) as server, Client(server.url, "jwt", "d", on_messages=callback) as client:
        assert await inbox.batches.get() == ["p1", "p2"]
        assert not client.caught_up.is_set()
        ping = asyncio.create_task(client.ping())
        await client.wait_caught_up()
        ping.cancel()


async def test_leaving_lets_the_callback_finish_and_acknowledges() -> None:
    working = asyncio.Event()

    async def callback(_: list[Message]) -> None:
        working.set()
        for _turn in range(10):
            await asyncio.sleep(0)

    async def script(peer: Peer) -> None:
        await peer.welcome()
        await peer.say(messages("p0", "p1", "p1"))
        assert await peer.next() == {"type": "ack", "pos": "p1"}
        await peer.until_closed()

    async with serving(script) as server, Client(server.url, "jwt", "d", on_messages=callback):
        await working.wait()


async def test_a_client_that_acknowledges_by_hand_sends_no_other_acks() -> None:
    inbox = Inbox()

    async def first(peer: Peer) -> None:
        await peer.welcome()
        await peer.say(messages("p0", "p2", "p1", "p2"), messages("p2", "p3", "p3"))
        assert await peer.next() == {"type": "ack", "pos": "p1"}
        await peer.ws.close(code=4000)

    async def second(peer: Peer) -> None:
        assert peer.hello["after"] == "p1"
        await peer.welcome("p1")
        await peer.say(messages("p1", "p3", "p2", "p3"))
        await peer.until_closed()

    async with (
        serving(first, second) as server,
        Client(server.url, "jwt", "d", on_messages=inbox, ack=False) as client,
    ):
        await inbox.batches.get()
        await inbox.batches.get()
        await client.ack("p1")
        assert await inbox.batches.get() == ["p2", "p3"]
    assert inbox.positions == ["p1", "p2", "p3", "p2", "p3"]


async def test_messages_that_come_again_after_a_loss_during_the_callback_are_not_handed_over_twice() -> None:
    lost = asyncio.Event()
    inbox = Inbox()

    async def callback(batch: list[Message]) -> None:
        await inbox(batch)
        await lost.wait()

    async def first(peer: Peer) -> None:
        await peer.welcome()
        await peer.say(messages("p0", "p2", "p1", "p2"), messages("p2", "p3", "p3"))
        assert (await peer.next())["type"] == "ping"
        await peer.ws.close(code=4100)

    async def second(peer: Peer) -> None:
        assert "after" not in peer.hello
        lost.set()
        await peer.welcome("p0")
        assert (await peer.next())["type"] == "ping"
        await peer.say(messages("p0", "p1", "p1"), messages("p1", "p4", "p2", "p3", "p4"))
        while (ack := await peer.next())["pos"] != "p4":
            assert ack["pos"] == "p1"
        await peer.until_closed()

    async with serving(first, second) as server, Client(server.url, "jwt", "d", on_messages=callback) as client:
        await inbox.batches.get()
        ping = asyncio.create_task(client.ping())
        assert await inbox.batches.get() == ["p3", "p4"]
        ping.cancel()
    assert inbox.positions == ["p1", "p2", "p3", "p4"]


@pytest.mark.parametrize("frame", [messages("p2", "p3", "p3"), {"type": "missed", "after": "p0", "until": "p3"}])
async def test_a_broken_chain_ends_the_client(frame: dict[str, Any]) -> None:
    async def script(peer: Peer) -> None:
        await peer.welcome("p0")
        await peer.say(messages("p0", "p1", "p1"))
        await peer.say(frame)
        await peer.until_closed()

    async with serving(script) as server:
        with pytest.raises(ChainBroken, match=r"p[02].*p1"):
            async with Client(server.url, "jwt", "d", on_messages=Inbox()) as client:
                await client.wait_closed()
        with pytest.raises(ChainBroken):
            await client.send("a", 1)


async def test_the_first_frame_has_to_continue_the_welcome() -> None:
    async def script(peer: Peer) -> None:
        await peer.welcome("p5")
        await peer.say(messages("p4", "p6", "p6"))
        await peer.until_closed()

    async with serving(script) as server:
        with pytest.raises(ChainBroken):
            async with Client(server.url, "jwt", "d", on_messages=Inbox()) as client:
                await client.send("a", 1)


async def test_missed_is_reported_in_order_and_acknowledged() -> None:
    story: list[Any] = []

    async def on_messages(batch: list[Message]) -> None:
        story.extend(message.pos for message in batch)

    async def on_missed(after: str, until: str) -> None:
        story.append((after, until))

    async def script(peer: Peer) -> None:
        await peer.welcome()
        missed = {"type": "missed", "after": "p1", "until": "p8"}
        await peer.say(
            messages("p0", "p1", "p1"), missed, messages("p8", "p9", "p9"), {"type": "caught_up", "pos": "p9"}
        )
        while (await peer.next())["pos"] != "p9":
            pass
        await peer.until_closed()

    async with (
        serving(script) as server,
        Client(server.url, "jwt", "d", on_messages=on_messages, on_missed=on_missed) as client,
    ):
        await client.wait_caught_up()
        assert story == ["p1", ("p1", "p8"), "p9"]


async def test_a_callback_that_raises_ends_the_client() -> None:
    async def callback(_: list[Message]) -> None:
        raise RuntimeError("no room")

    async def script(peer: Peer) -> None:
        await peer.welcome()
        await peer.say(messages("p0", "p1", "p1"))
        message = await peer.ws.receive()
        assert message.type is not WSMsgType.TEXT, "it must not be acknowledged"

    async with serving(script) as server:
        with pytest.raises(RuntimeError, match="no room"):
            async with Client(server.url, "jwt", "d", on_messages=callback) as client:
                await client.wait_closed()


async def test_a_bad_token_is_refused_with_the_servers_words() -> None:
    async def script(peer: Peer) -> None:
        await peer.say({"type": "error", "code": "bad_token", "message": "the token has expired", "retry": False})
        await peer.ws.close(code=4501)

    async with serving(script) as server:
        with pytest.raises(ConnectionClosed, match="the token has expired") as caught:
            async with Client(server.url, "jwt", "d"):
                pass
        assert caught.value.code == 4501


async def test_a_takeover_ends_the_client_and_its_sends() -> None:
    async def script(peer: Peer) -> None:
        await peer.welcome()
        await peer.next()
        await peer.ws.close(code=4510, message=b"taken over")

    async with serving(script) as server:
        with pytest.raises(ConnectionClosed, match="taken over") as caught:
            async with Client(server.url, "jwt", "d") as client:
                await client.send("a", 1)
        assert caught.value.code == 4510


async def test_each_connection_gets_a_new_token() -> None:
    tokens = iter(["one", "two"])

    async def token() -> str:
        return next(tokens)

    async def expires(peer: Peer) -> None:
        await peer.welcome()
        await peer.ws.close(code=4401)

    async def lives(peer: Peer) -> None:
        await peer.welcome()
        await peer.confirm((await peer.next())["id"])
        await peer.until_closed()

    async with serving(expires, lives) as server, Client(server.url, token, "d") as client:
        await client.send("a", 1)
        assert [hello["token"] for hello in server.hellos] == ["one", "two"]


async def test_goodbye_says_when_to_come_back(monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []
    at_once = asyncio.sleep

    async def sleep(seconds: float) -> None:
        waits.append(seconds)
        await at_once(0)

    monkeypatch.setattr(asyncio, "sleep", sleep)

    async def leaves(peer: Peer) -> None:
        await peer.welcome()
        await peer.say({"type": "goodbye", "reason": "deploy", "reconnect_in_ms": 600_000})
        await peer.ws.close(code=4000)

    async def lives(peer: Peer) -> None:
        await peer.welcome()
        await peer.say({"type": "caught_up", "pos": "p0"})
        await peer.until_closed()

    async with serving(leaves, lives) as server, Client(server.url, "jwt", "d") as client:
        await client.wait_caught_up()
        # The rest of the ten minutes.
        assert any(WITHIN_S < wait <= 600 for wait in waits)


async def test_history_and_ping_survive_a_reconnect() -> None:
    async def dies(peer: Peer) -> None:
        await peer.welcome()
        await peer.next()
        await peer.ws.close(code=4000)

    async def lives(peer: Peer) -> None:
        await peer.welcome()
        request = await peer.next()
        ref = request.pop("ref")
        assert request == {"type": "history", "with": "carol", "limit": 2}
        found = [{"id": "m", "from": "carol", "to": "bob", "at": AT, "body": None}]
        await peer.say({"type": "history", "ref": ref, "messages": found, "before": "cursor"})
        request = await peer.next()
        ref = request.pop("ref")
        assert request == {"type": "history", "after": "p1", "until": "p2", "before": "cursor", "limit": 50}
        await peer.say({"type": "history", "ref": ref, "messages": [], "before": None})
        await peer.say({"type": "pong", "ref": (await peer.next())["ref"]})
        await peer.until_closed()

    async with serving(dies, lives) as server, Client(server.url, "jwt", "d") as client:
        page = await client.history("carol", limit=2)
        assert (page.messages, page.before) == ([Message("m", "carol", AT, None, to="bob")], "cursor")
        assert (await client.history_range("p1", "p2", before="cursor")).messages == []
        assert await client.ping() > 0


async def test_a_request_without_an_answer_is_an_error_of_the_client() -> None:
    async def script(peer: Peer) -> None:
        await peer.welcome()
        await peer.until_closed()

    async with serving(script) as server, Client(server.url, "jwt", "d") as client:
        client._timeout_s = 0.05
        for request in (client.ping(), client.history("carol"), client.history_range("0-0", "1-0")):
            with pytest.raises(ChatError, match=r"no answer to a (ping|history)") as caught:
                await request
            assert isinstance(caught.value, RequestTimeout)


async def test_a_client_without_a_callback_acknowledges_nothing() -> None:
    async def script(peer: Peer) -> None:
        await peer.welcome()
        await peer.say(messages("p0", "p1", "p1"))
        await peer.say({"type": "missed", "after": "p1", "until": "p2"})
        await peer.say({"type": "caught_up", "pos": "p2"})
        # An acknowledgement of p2 would be one of p1, which nobody has seen.
        assert (await peer.next())["type"] == "ping"
        await peer.until_closed()

    async def note(after: str, until: str) -> None:
        noted.append((after, until))

    for on_missed in (None, note):
        noted: list[tuple[str, str]] = []
        async with serving(script) as server, Client(server.url, "jwt", "d", on_missed=on_missed) as client:
            await client.wait_caught_up()
            pinging = asyncio.create_task(client.ping())
            await asyncio.sleep(0.05)
            pinging.cancel()
        assert noted == ([] if on_missed is None else [("p1", "p2")])


async def test_a_frame_of_four_mebibytes_is_taken() -> None:
    inbox = Inbox()
    large = messages("p0", "p1", "p1")
    large["messages"][0]["body"] = "x" * 4 * 1024 * 1024

    async def script(peer: Peer) -> None:
        await peer.welcome()
        await peer.say(large)
        assert (await peer.next())["pos"] == "p1"
        await peer.until_closed()

    async with serving(script) as server, Client(server.url, "jwt", "d", on_messages=inbox):
        await inbox.batches.get()


async def test_a_server_that_speaks_nonsense_ends_the_client() -> None:
    async def script(peer: Peer) -> None:
        await peer.ws.send_str("{")
        await peer.until_closed()

    async with serving(script) as server:
        with pytest.raises(ConnectionClosed) as caught:
            async with Client(server.url, "jwt", "d"):
                pass
        assert caught.value.code == "protocol"


async def test_a_client_reports_that_nothing_listens() -> None:
    async with serving() as server:
        url = server.url
    with pytest.raises(ConnectionClosed, match="nothing listens at ws://") as caught:
        async with Client(url, "jwt", "d"):
            pass
    assert caught.value.code == "unreachable"


async def test_a_closed_client_sends_nothing() -> None:
    async def script(peer: Peer) -> None:
        await peer.welcome()
        await peer.next()
        await peer.until_closed()

    async with serving(script) as server:
        async with Client(server.url, "jwt", "d") as client:
            sending = asyncio.create_task(client.send("a", 1))
            await asyncio.sleep(0)
        for attempt in (sending, client.send("a", 2), client.history("a")):
            with pytest.raises(ConnectionClosed) as caught:
                await attempt
            assert caught.value.code == "closed"


@given(st.lists(st.sampled_from(["refuse", "confirm", "add", "reconnect"]), max_size=60))
async def test_sends_that_fail_are_accepted_in_order(steps: list[str]) -> None:
    """The gateway's promise is assumed: after a failed send, all to the same recipient fail until it is sent again."""
    queues, call = RecipientQueues(), _Call(1_000)
    added: list[str] = []
    wire: list[str] = []
    accepted: list[str] = []
    failed: str | None = None

    def answer(refuse: bool) -> None:
        nonlocal failed
        id_ = wire.pop(0)
        if refuse or (failed is not None and id_ != failed):
            failed = failed or id_
            _, queue = queues.answer(id_, None)
        else:
            failed = None
            if id_ not in accepted:
                accepted.append(id_)
            _, queue = queues.answer(id_, Sent(id_, AT))
        if queue is not None:
            queues.again(queue)
        wire.extend(frame.decode() for frame in queues.take())

    for step in steps:
        if step == "add":
            id_ = str(len(added))
            added.append(id_)
            queues.add(_Send(id_, "a", id_.encode(), 0.0, call, len(added)))
            wire.extend(frame.decode() for frame in queues.take())
        elif step == "reconnect":
            # A send on the wire was accepted or not: here it was, and the answer was lost.
            if failed is None:
                accepted.extend(id_ for id_ in wire if id_ not in accepted)
            wire, failed = [], None
            queues.restart()
            wire.extend(frame.decode() for frame in queues.take())
        elif wire:
            answer(step == "refuse")
    while wire:
        answer(refuse=False)
    assert accepted == added
    assert not queues.sends


def test_the_recipient_queues_ignore_answers_to_unknown_ids() -> None:
    assert RecipientQueues().answer("x", Sent("x", AT)) == (False, None)
