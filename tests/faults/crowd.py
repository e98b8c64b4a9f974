"""A random crowd of users, repeatable by its seed, and the check of what each of its devices received.

Users have one to three devices that connect, acknowledge a part, drop the connection without a close frame and come
back. Senders send small arrays, lose their connections, and send some messages again under their ids.
"""

from __future__ import annotations

import asyncio
import contextlib
import enum
import random
from collections import Counter
from collections.abc import Callable, Coroutine, Iterable
from typing import Any, NamedTuple

from chat_streams.model.position import ORIGIN, Position
from clients.python.client import Client, Message
from clients.python.errors import ChainBroken, ConnectionClosed, RequestRefused
from docker.local.probes import WITHIN_S, abort_client, eventually
from docker.local.temporary_stack import Stack

USERS = 30
SENDERS = 6
ARRAY = 20
"""The largest number of messages in a sender's array; it is half of that on average."""
SENDER_PAUSE_S = 0.1, 0.3
ARRAYS_AT_ONCE = 5
HELLO_S = 20.0
MOST_PROBLEMS = 20


class Phase(enum.StrEnum):
    """The behaviour of the recipients while the fault happens."""

    STORING = "storing"
    """Most are offline."""
    DRAINING = "draining"
    """They connect to full inboxes."""
    LIVE = "live"
    """They are online."""


class _Stays(NamedTuple):
    """Ranges of seconds, as (from, to)."""

    online: tuple[float, float]
    offline: tuple[float, float]


_STAYS = {
    Phase.STORING: _Stays((0.3, 2.0), (10.0, 60.0)),
    Phase.DRAINING: _Stays((0.5, 5.0), (0.1, 1.5)),
    Phase.LIVE: _Stays((4.0, 30.0), (0.1, 0.5)),
}


async def _set_within(event: asyncio.Event, seconds: float) -> bool:
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await event.wait()
    return event.is_set()


class Outcome(NamedTuple):
    """The result of the check; all but ``confirmed``, ``sent_again`` and ``missed`` has to be zero or empty.

    ``missed`` are messages that are gone and that a device was told it missed, for each device.
    """

    confirmed: int
    sent_again: int
    lost: int
    swapped: int
    repeated: int
    problems: list[str]
    missed: int = 0


class Device:
    """One device of a user, over all its connections."""

    def __init__(self, crowd: Crowd, user: str, name: str, rng: random.Random) -> None:
        self.user, self.name = user, name
        self.got: set[tuple[str, int]] = set()
        self.told: list[tuple[Position, Position]] = []
        """The ranges that it was told it missed."""
        self.swapped = self.repeated = 0
        self.crowd = crowd
        self._rng = rng
        self._newest: Counter[str] = Counter()
        """The highest number ever received, by sender."""
        self._acked = ORIGIN
        self._kept = ORIGIN
        """The cursor that the client names when it connects."""
        # The state of the current connection.
        self._connection = ""
        self._floor = self._last = ORIGIN
        self._last_here = ORIGIN
        """Up to where it was told on this connection that it missed something."""
        self._here: set[tuple[str, int]] = set()
        self._newest_here: Counter[str] = Counter()

    async def come(self) -> None:
        """Connect once, so that the inbox keeps future messages for this device, too."""
        async with self._client(ack=True, hello_s=WITHIN_S):
            pass

    async def wander(self, stays: _Stays) -> None:
        """Connect and disconnect at random until the crowd stops."""
        stop = self.crowd.stopping
        while not await _set_within(stop, self._rng.uniform(*stays.offline)):
            seconds = self._rng.uniform(*stays.online)
            vanish, keep = self._rng.random() < 0.6, self._rng.random() < 0.5
            try:
                async with self._client(keep=keep) as client:
                    await _set_within(stop, seconds)
                    if vanish:
                        abort_client(client)
            except ConnectionClosed as error:
                self.crowd.note(self, error)

    async def drain(self, within_s: float) -> None:
        """Stay connected until everything confirmed to the user has arrived."""
        deadline = asyncio.get_running_loop().time() + within_s
        while (left := deadline - asyncio.get_running_loop().time()) > 0:
            try:
                async with self._client(ack=True) as client:
                    with contextlib.suppress(AssertionError):
                        # Messages it has received and not acknowledged come again first.
                        await eventually(lambda: client.caught_up.is_set() and not self.missing(), within_s=left)
                    return
            except ConnectionClosed as error:
                self.crowd.note(self, error)
                await asyncio.sleep(0.2)

    def missing(self) -> set[tuple[str, int]]:
        """Return the messages that were confirmed to the user, have not arrived, and were not told as missed."""
        return self.crowd.confirmed_to[self.user] - self.got - self.missed()

    def missed(self) -> set[tuple[str, int]]:
        """Return the messages that are gone, have not arrived, and lie in a range that was told as missed."""
        gone = self.crowd.gone.get(self.user, {})
        return {
            name
            for name, position in gone.items()
            if name not in self.got and any(after < position <= until for after, until in self.told)
        }

    def miss(self, after: str, until: str) -> None:
        """Record that the device was told that it missed a range."""
        end = Position.parse(until)
        if not self.crowd.gone:
            self.crowd.problem(f"{self} was told that it missed what is after {after} up to {until}")
        elif end <= max(self._kept, self._last_here):
            self.crowd.problem(f"{self} was told again that it missed what is up to {until}")
        self._last_here = end
        self.told.append((Position.parse(after), end))

    def _client(self, ack: bool = False, keep: bool = False, hello_s: float = HELLO_S) -> Client:
        self._kept = self._acked if keep else ORIGIN
        self._last_here = ORIGIN
        crowd = self.crowd

        async def on_messages(messages: list[Message]) -> None:
            assert client.welcome is not None
            self.take(client.welcome.connection, messages)
            roll = self._rng.random()
            if ack:
                self._kept = self._acked = max(self._acked, self._last)
            elif roll < 0.75:
                # Acknowledge all of it, or a part.
                message = messages[-1] if roll < 0.5 else self._rng.choice(messages)
                if (position := Position.parse(message.pos)) > self._acked:
                    self._kept = self._acked = position
                    await client.ack(message.pos)

        async def on_missed(after: str, until: str) -> None:
            self.miss(after, until)
            if ack:
                self._kept = self._acked = max(self._acked, self._last_here)

        client = Client(
            self._rng.choice(crowd.urls),
            crowd.stack.token(self.user),
            self.name,
            after=str(self._kept) if self._kept > ORIGIN else None,
            on_messages=on_messages,
            on_missed=on_missed,
            ack=ack,
            timeout_s=hello_s,
        )
        return client

    def take(self, connection: str, messages: Iterable[Message]) -> None:
        """Record the messages that came on a connection."""
        if connection != self._connection:
            self._connection = connection
            self._floor, self._last = self._kept, ORIGIN
            self._here.clear()
            self._newest_here.clear()
        for message in messages:
            to, number = message.body
            if to != self.user:
                self.crowd.problem(f"{self} got message {message.id}, which is to {to}")
                continue
            position, name = Position.parse(message.pos), (message.sender, number)
            if name in self._here or position <= max(self._floor, self._last):
                self.repeated += 1
                self.crowd.problem(f"{self} got message {message.id} at {position} again on one connection")
            elif number <= self._newest_here[message.sender] or (
                name not in self.got and number <= self._newest[message.sender]
            ):
                self.swapped += 1
                self.crowd.problem(f"{self} got message {message.id} ({number}) of {message.sender} after a later one")
            self._last = max(self._last, position)
            self._here.add(name)
            self.got.add(name)
            for newest in (self._newest, self._newest_here):
                newest[message.sender] = max(newest[message.sender], number)

    def __str__(self) -> str:
        return f"{self.name} of {self.user}"


class Crowd:
    """Users and senders. ``prepare``, ``start``, ``finish``; the names and each decision come from ``seed``.

    A message that is not confirmed within ``confirm_s`` seconds is a problem.
    """

    def __init__(self, stack: Stack, urls: list[str], phase: Phase, seed: str, confirm_s: float = WITHIN_S) -> None:
        self.stack, self.urls, self.phase, self._confirm_s = stack, urls, phase, confirm_s
        self.stopping = asyncio.Event()
        self.confirmed = 0
        self.sent_again = 0
        self.confirmed_to: dict[str, set[tuple[str, int]]] = {}
        self.gone: dict[str, dict[tuple[str, int], Position]] = {}
        """The messages that a fault has removed from the log before they were applied, by recipient."""
        self._numbers: Counter[tuple[str, str]] = Counter()
        """The highest number sent, by sender and recipient; each pair begins with 1."""
        self._may_send = asyncio.Event()
        self._may_send.set()
        self._arrays_under_way = 0
        self._seed = seed
        self._problems: list[str] = []
        self._problem_count = 0
        rng = random.Random(seed)
        self.users = [f"user-{rng.getrandbits(48):012x}" for _ in range(USERS)]
        self._senders = [f"sender-{rng.getrandbits(48):012x}" for _ in range(SENDERS)]
        self.devices = []
        for user in self.users:
            self.confirmed_to[user] = set()
            for name in ("phone", "laptop", "watch")[: rng.randint(1, 3)]:
                self.devices.append(Device(self, user, name, random.Random(f"{seed} {user} {name}")))
        self._tasks: list[asyncio.Task[None]] = []

    def problem(self, text: str) -> None:
        """Record something that must not happen."""
        self._problem_count += 1
        if len(self._problems) < MOST_PROBLEMS:
            self._problems.append(text)

    def note(self, device: Device, error: ConnectionClosed) -> None:
        """Record the end of a client as a problem, unless a fault explains it."""
        if error.code != "unreachable":
            kind = "a broken chain" if isinstance(error, ChainBroken) else "an end"
            self.problem(f"{device} saw {kind}: {error} ({error.code})")

    async def prepare(self) -> None:
        """Connect each device once."""
        await asyncio.gather(*(device.come() for device in self.devices))

    def start(self) -> None:
        """Start the senders, and also the devices unless they wait for ``come``."""
        for name in self._senders:
            self._start(self._send(name, random.Random(f"{self._seed} {name}")))
        if self.phase is not Phase.DRAINING:
            self.come()

    def come(self) -> None:
        """Start the devices."""
        for device in self.devices:
            self._start(device.wander(_STAYS[self.phase]))

    async def pause(self) -> None:
        """Have the senders wait; returns once all that was sent is confirmed."""
        self._may_send.clear()
        await eventually(lambda: not self._arrays_under_way, "all that was sent is confirmed", self._confirm_s)

    def resume(self) -> None:
        """Have the senders go on."""
        self._may_send.set()

    async def until_confirmed(self, count: int) -> None:
        """Wait until ``count`` messages are confirmed."""
        await eventually(lambda: self.confirmed >= count, f"{count} confirmed messages", self._confirm_s)

    async def finish(self, within_s: float, stage: Callable[[str], None]) -> Outcome:
        """Stop everybody, let every device receive all that was confirmed, and check."""
        self.stopping.set()
        stage("the last sends")
        await asyncio.gather(*self._tasks)
        stage("draining")
        await asyncio.gather(*(device.drain(within_s) for device in self.devices))
        if not any(device.missing() for device in self.devices):
            await self._inboxes_empty(within_s)
        return self.check()

    def check(self) -> Outcome:
        """Compare the messages that were confirmed with those that each device has."""
        lost = 0
        for device in self.devices:
            if missing := device.missing():
                lost += len(missing)
                self.problem(f"{device} lacks {len(missing)} messages, {sorted(missing)[:3]} and so on")
        problems = [*self._problems]
        if self._problem_count > len(problems):
            problems.append(f"and {self._problem_count - len(problems)} more")
        return Outcome(
            self.confirmed,
            self.sent_again,
            lost,
            sum(device.swapped for device in self.devices),
            sum(device.repeated for device in self.devices),
            problems,
            sum(len(device.missed()) for device in self.devices),
        )

    async def cancel(self) -> None:
        """Stop everything at once."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _inboxes_empty(self, within_s: float) -> None:
        async def full() -> list[str]:
            stored = await asyncio.gather(*(self.stack.stored(user) for user in self.users))
            return [f"{user} ({count})" for user, count in zip(self.users, stored, strict=True) if count]

        async def empty() -> bool:
            return not await full()

        try:
            await eventually(empty, within_s=within_s)
        except AssertionError:
            self.problem(f"inboxes that are not empty: {', '.join((await full())[:5])}")

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        self._tasks.append(asyncio.create_task(work))

    async def _send(self, name: str, rng: random.Random) -> None:
        while not self.stopping.is_set():
            arrays = rng.randint(10, 60)
            client = Client(rng.choice(self.urls), self.stack.token(name), "sender", timeout_s=self._confirm_s)
            try:
                async with client:
                    await self._send_arrays(client, name, rng, arrays)
            except ConnectionClosed as error:
                if error.code != "unreachable":
                    self.problem(f"{name} saw an end: {error} ({error.code})")
                await asyncio.sleep(0.1)

    async def _send_arrays(self, client: Client, name: str, rng: random.Random, arrays: int) -> None:
        pending: set[asyncio.Task[None]] = set()
        for _ in range(arrays):
            await self._may_send.wait()
            array = []
            for to in rng.choices(self.users, k=rng.randint(1, ARRAY)):
                self._numbers[name, to] += 1
                array.append((to, self._numbers[name, to]))
            again = rng.choice(array) if rng.random() < 0.1 else None
            # Tasks begin to send in the order of their creation: that is the order of arrival.
            pending.add(asyncio.create_task(self._send_array(client, name, array, again)))
            if rng.random() < 0.03:
                abort_client(client)
            if await _set_within(self.stopping, rng.uniform(*SENDER_PAUSE_S)):
                break
            if len(pending) >= ARRAYS_AT_ONCE:
                _, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
        await asyncio.gather(*pending)

    async def _send_array(
        self, client: Client, name: str, array: list[tuple[str, int]], again: tuple[str, int] | None
    ) -> None:
        self._arrays_under_way += 1
        sends = [asyncio.create_task(self._send_one(client, name, to, number)) for to, number in array]
        try:
            if all(await asyncio.gather(*sends)) and again is not None:
                # As if the first answer had not arrived.
                self.sent_again += 1
                with contextlib.suppress(ValueError):
                    await self._send_one(client, name, *again)
        finally:
            self._arrays_under_way -= 1

    async def _send_one(self, client: Client, name: str, to: str, number: int) -> bool:
        try:
            await client.send(to, [to, number], id=f"{to}-{number}")
        except (RequestRefused, TimeoutError) as error:
            self.problem(f"message {number} of {name} to {to} is not confirmed: {error}")
            return False
        if (name, number) not in self.confirmed_to[to]:
            self.confirmed_to[to].add((name, number))
            self.confirmed += 1
        return True
