"""``make demo``: a demonstration of Connect Chat on the running stack, with real WebSocket clients.

Three people send 1,000 messages to bob, who is offline; bob connects and gets each of them, once, in order.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Any

import aioboto3
from botocore.exceptions import BotoCoreError, ClientError
from redis.asyncio.cluster import RedisCluster
from redis.exceptions import RedisError
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from chat_streams.model.addresses import join_address
from chat_streams.model.errors import SettingsError
from chat_streams.runtime.settings import Settings, settings
from chat_streams.runtime.tokens import mint
from clients.python.client import Client, Message, Sent, all_sent
from clients.python.errors import ConnectionClosed, RequestRefused
from docker.local.layout import Layout, StackError, base_environment, service_environment
from tables.redis_cluster import connect

MESSAGES = 1_000
CHUNK = 25
LIVE = 5
STEP_S = 60.0
TOKEN_S = 600
SENTENCES = (
    "The kettle is on, come in whenever you like.",
    "I found your blue umbrella behind the piano.",
    "Shall we take the early train or sleep in?",
    "The cat has opinions about the new sofa.",
    "J'ai gardé une part de tarte pour toi.",
    "Il pleut sur les toits, on reste au chaud ?",
    "Der Schlüssel liegt unter dem großen Blumentopf.",
    "Übermorgen räumen wir endlich den Keller auf.",
    "Mañana te enseño la foto del pingüino.",
    "Amanhã trago pão fresco e três limões.",
    "Kahve hazır, balkonda oturuyoruz.",
    "Žlutá kola stojí vedle staré lípy.",
    "Tối nay mình nấu phở, bạn nhớ ghé nhé.",
    "Завтра утром пойдём за грибами.",
    "Не забудь взять с собой тёплый шарф.",
    "Сьогодні над річкою був дивний туман.",
    "Το καράβι φεύγει στις οκτώ ακριβώς.",
    "Πήρα φρέσκα σύκα από την αγορά.",
    "שמרתי לך מקום ליד החלון.",
    "הכלב למד היום לפתוח את הדלת.",
    "وصلت الرسالة، شكرا يا صديقي.",
    "الشاي بالنعناع جاهز على الطاولة.",
    "کتابت را روی میز آشپزخانه گذاشتم.",
    "आज शाम छत पर पतंग उड़ाएँगे।",
    "मेरी चाय में थोड़ी अदरक ज़्यादा डालना।",
    "কাল সকালে নদীর ধারে দেখা হবে।",
    "மழை நின்றதும் கடைக்குப் போகலாம்.",
    "พรุ่งนี้เจอกันที่ตลาดน้ำนะ",
    "ხვალ მთაში მივდივართ, წამოხვალ?",
    "Վաղը միասին նուռ կքաղենք։",
    "ነገ ጠዋት ቡና አብረን እንጠጣ።",
    "明天一起去湖边看日出吧。",
    "我把钥匙放在红色的盒子里了。",
    "駅前のパン屋さん、今日は焼きたてだよ。",
    "傘を忘れたから、少し遅れます。",
    "내일 저녁에 만두를 같이 빚어요.",
    "고양이가 키보드 위에서 잠들었어요.",
    "🎉 The parcel is here: 3 × 🍯, 1 × 🧦, 0 × 🐝",
    "👩🏽‍🚀👨‍👩‍👧‍👦 the whole crew says hi 🏳️‍🌈",
    'Quotes "inside", a back\\slash, a\ttab and\ntwo lines.',
)

screen = Console(highlight=False)


class DemoError(Exception):
    """An error for a result that is not as promised; the text says what."""


def body(number: int) -> Any:
    """Return the body of message ``number``: every third is nested JSON, the others plain text."""
    text = SENTENCES[number % len(SENTENCES)]
    if number % 3:
        return text
    return {
        "n": number,
        "text": text,
        "tags": ["demo", None, True],
        "place": {"lat": 48.2 + number, "names": {"de": "Wien"}},
    }


def check(sent: dict[str, list[tuple[str, Any]]], got: Sequence[Message]) -> None:
    """Compare what arrived, in its order, with what each user sent: pairs (id, body).

    Raises ``DemoError`` naming the first message that is lost, repeated, swapped or changed.
    """
    came: dict[str, list[Message]] = {user: [] for user in sent}
    for message in got:
        if message.sender not in came:
            raise DemoError(f"message {message.id} of {message.sender} came to the wrong place")
        came[message.sender].append(message)
    for user, expected in sent.items():
        ids = [message.id for message in came[user]]
        if repeated := [id_ for id_ in ids if ids.count(id_) > 1] if len(set(ids)) < len(ids) else []:
            raise DemoError(f"message {repeated[0]} of {user} came {ids.count(repeated[0])} times")
        if lost := [id_ for id_, _ in expected if id_ not in set(ids)]:
            raise DemoError(
                f"{len(lost)} of {len(expected)} messages of {user} did not come, the first one is {lost[0]}"
            )
        if unknown := set(ids) - {id_ for id_, _ in expected}:
            raise DemoError(f"message {unknown.pop()} came from {user}, who did not send it")
        for index, ((id_, content), message) in enumerate(zip(expected, came[user], strict=True)):
            if message.id != id_:
                raise DemoError(f"message {index} of {user} is {message.id}, and should be {id_}")
            if message.body != content:
                raise DemoError(f"message {id_} of {user} was changed: {message.body!r}, sent as {content!r}")


async def until(expected: int, count: Callable[[], Awaitable[int]], what: str) -> None:
    """Wait until ``count()`` is ``expected``; raises ``DemoError`` after ``STEP_S`` seconds."""
    found: int | None = None
    try:
        async with asyncio.timeout(STEP_S):
            while True:
                found = await count()
                if found == expected:
                    return
                await asyncio.sleep(0.02)
    except TimeoutError:
        raise DemoError(f"{what}: {found} after {STEP_S:g} s, not {expected}") from None


async def count_history(found: Settings, one: str, other: str) -> int:
    """Return the number of messages between two users, read from DynamoDB itself."""
    key = "dm#" + "#".join(sorted((one, other)))
    query: dict[str, Any] = {
        "TableName": found.history_table,
        "KeyConditionExpression": "conversation = :c",
        "ExpressionAttributeValues": {":c": {"S": key}},
        "Select": "COUNT",
    }
    count = 0
    async with aioboto3.Session().client("dynamodb", endpoint_url=found.dynamodb_endpoint) as database:
        while True:
            answer = await database.query(**query)
            count += answer["Count"]
            if "LastEvaluatedKey" not in answer:
                return count
            query["ExclusiveStartKey"] = answer["LastEvaluatedKey"]


async def page_history(client: Client, other: str) -> list[Message]:
    """Return the whole conversation with ``other``, oldest first, fetched page by page through the gateway."""
    messages: list[Message] = []
    cursor: str | None = None
    while True:
        page = await client.history(other, before=cursor, limit=100)
        messages += page.messages
        if (cursor := page.before) is None:
            return sorted(messages, key=lambda message: message.at)


class Demo:
    """The demonstration, step by step."""

    def __init__(self, found: Settings) -> None:
        self._settings, self._key = found, found.jwt_key()
        self._url = f"ws://{join_address(found.gateway_host, found.gateway_port)}/v1/connect"
        suffix = secrets.token_hex(2)
        *self._senders, self._bob = (f"{name}-{suffix}" for name in ("alice", "carla", "dmitri", "bob"))
        self._sent: dict[str, list[tuple[str, Any]]] = {user: [] for user in self._senders}
        self._got: list[Message] = []
        self._progress = asyncio.Event()
        self._facts: list[tuple[str, str]] = []

    def _client(self, user: str, on_messages: Callable[[list[Message]], Awaitable[None]] | None = None) -> Client:
        token = mint(self._key, user, TOKEN_S)
        return Client(self._url, token, "demo", on_messages=on_messages, timeout_s=STEP_S)

    def _fact(self, what: str, result: str) -> None:
        self._facts.append((what, result))
        screen.print(Text.assemble(("  ✓ ", "bold green"), f"{what}: ", (result, "bold")))

    async def run(self) -> None:
        """Run all steps; raises ``DemoError`` at the first result that is not as promised."""
        screen.print(f"\n[bold]Connect Chat[/bold] at {self._url}. This run's users, so that runs don't meet:", end=" ")
        screen.print(f"[cyan]{', '.join(self._senders)}[/cyan] and [cyan]{self._bob}[/cyan].")
        async with self._redis() as redis, contextlib.AsyncExitStack() as senders:

            async def pending() -> int:
                return int(await redis.xlen(f"{{u:{self._bob}}}:inbox"))

            clients = {user: await senders.enter_async_context(self._client(user)) for user in self._senders}
            screen.rule(f"{self._bob} is offline; the others write to him", align="left")
            await self._send(clients)
            await until(MESSAGES, pending, f"entries in the inbox of {self._bob}")
            self._fact(f"Redis, inbox of {self._bob}", f"{MESSAGES:,} messages wait")
            screen.rule(f"{self._bob} connects", align="left")
            start = time.perf_counter()
            async with self._client(self._bob, self._arrived) as bob:
                await self._receive(start)
                await until(0, pending, f"entries in the inbox of {self._bob}, who acknowledged all")
                seconds = time.perf_counter() - start
                self._fact(f"Redis, inbox of {self._bob}", f"empty {seconds * 1000:.0f} ms after he began to connect")
                screen.rule("The chat database keeps them", align="left")
                await self._history(bob)
                screen.rule(f"{self._bob} stays on", align="left")
                await self._live(clients[self._senders[0]])
        self._end()

    @contextlib.asynccontextmanager
    async def _redis(self) -> AsyncIterator[RedisCluster]:
        redis = connect(self._settings)
        try:
            yield redis
        finally:
            await redis.aclose()

    @staticmethod
    def _bars() -> Progress:
        columns = (TextColumn("  {task.description:<14}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        return Progress(*columns, console=screen)

    async def _send(self, clients: dict[str, Client]) -> None:
        start = time.perf_counter()
        with self._bars() as bars:

            async def write(offset: int, user: str) -> None:
                numbers = range(offset, MESSAGES, len(clients))
                bar = bars.add_task(user, total=len(numbers))
                for first in range(0, len(numbers), CHUNK):
                    bodies = [body(number) for number in numbers[first : first + CHUNK]]
                    answers = all_sent(await clients[user].send_many((self._bob, content) for content in bodies))
                    self._sent[user] += zip((answer.id for answer in answers), bodies, strict=True)
                    bars.advance(bar, len(bodies))

            async with asyncio.TaskGroup() as group:
                for offset, user in enumerate(clients):
                    group.create_task(write(offset, user))
        seconds = time.perf_counter() - start
        self._fact("Kafka has accepted", f"{MESSAGES:,} messages in {seconds:.2f} s")
        for text in SENTENCES[13:40:6]:
            screen.print(Text(f"    {text}", style="dim"))

    async def _arrived(self, messages: list[Message]) -> None:
        self._got += messages
        self._progress.set()

    async def _wait_for(self, count: int, seen: Callable[[], None] = lambda: None) -> None:
        try:
            async with asyncio.timeout(STEP_S):
                while len(self._got) < count:
                    await self._progress.wait()
                    self._progress.clear()
                    seen()
        except TimeoutError:
            raise DemoError(f"{self._bob} has {len(self._got)} of {count} messages after {STEP_S:g} s") from None

    async def _receive(self, start: float) -> None:
        with self._bars() as bars:
            bar = bars.add_task(self._bob, total=MESSAGES)
            await self._wait_for(MESSAGES, lambda: bars.update(bar, completed=len(self._got)))
            seconds = time.perf_counter() - start
        self._fact(f"{self._bob} has", f"{MESSAGES:,} messages, {seconds * 1000:.0f} ms after he began to connect")
        check(self._sent, self._got)
        self._fact("Compared with what was sent", "each message once, unchanged, in its sender's order")

    async def _history(self, bob: Client) -> None:
        for user in self._senders:
            expected = len(self._sent[user])

            async def stored(user: str = user) -> int:
                return await count_history(self._settings, user, self._bob)

            await until(expected, stored, f"messages in DynamoDB between {user} and {self._bob}")
            ids = sorted(message.id for message in await page_history(bob, user))
            if ids != sorted(id_ for id_, _ in self._sent[user]):
                raise DemoError(f"the history with {user} has {len(ids)} messages, not the {expected} that were sent")
        self._fact("DynamoDB, and history paged through the gateway", f"{MESSAGES:,} messages in 3 conversations")

    async def _live(self, sender: Client) -> None:
        latencies = []
        for number in range(LIVE):
            content = f"{number + 1}: are you still there? 👋"
            start = time.perf_counter()
            confirmed: asyncio.Task[Sent] = asyncio.create_task(sender.send(self._bob, content))
            await self._wait_for(MESSAGES + number + 1)
            latencies.append(time.perf_counter() - start)
            if (await confirmed).id != self._got[-1].id or self._got[-1].body != content:
                raise DemoError(f"the live message {content!r} came as {self._got[-1]!r}")
        if len(self._got) != MESSAGES + LIVE:
            raise DemoError(f"{self._bob} has {len(self._got)} messages, {MESSAGES + LIVE} were sent")
        milliseconds = " · ".join(f"{latency * 1000:.1f}" for latency in latencies)
        self._fact(f"{LIVE} live messages from {self._senders[0]}", f"arrived in {milliseconds} ms")

    def _end(self) -> None:
        table = Table(title="\nWhat happened", title_justify="left", title_style="bold", show_header=False)
        for fact in self._facts:
            table.add_row(*fact)
        screen.print(table)
        table = Table(title="Where to look next", title_justify="left", title_style="bold", show_header=False)
        table.add_row("make status", "what is running, and where")
        table.add_row(f"make chat USER={self._bob}", "go on as one of them; another terminal, another user")
        table.add_row("make logs", "what the parts say")
        table.add_row("docs/architecture.md", "the way of a message, and what happens at each failure")
        table.add_row("docs/protocol.md", "the protocol, to write a client of your own")
        table.add_row("make down", "stop the stack; the data stays")
        screen.print(table)


def _first(error: BaseException) -> BaseException:
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


def main() -> int:
    """Run the demonstration; returns exit code 1, after a line that says why, when something is not as promised."""
    expected = (
        BotoCoreError,
        ClientError,
        DemoError,
        ConnectionClosed,
        RequestRefused,
        RedisError,
        SettingsError,
        StackError,
        OSError,
    )
    try:
        local = base_environment() | service_environment(Layout.from_settings())
        os.environ.clear()
        os.environ.update(local)
        asyncio.run(Demo(settings()).run())
    except KeyboardInterrupt:
        return 130
    except (*expected, BaseExceptionGroup) as error:
        first = _first(error)
        if not isinstance(first, expected):
            raise
        hint = ": run make up" if getattr(first, "code", "") == "unreachable" else ""
        screen.print(Text(f"The demo failed: {first}{hint}", style="bold red"))
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
