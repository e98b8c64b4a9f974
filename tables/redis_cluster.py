"""A client of Redis in cluster mode: pipelines function calls in one round trip to each primary."""

from __future__ import annotations

import asyncio
import itertools
import math
import re
import ssl
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator, Sequence
from functools import lru_cache, partial
from typing import Any, Final, NamedTuple

import hiredis
import structlog
from redis.asyncio.cluster import ClusterNode, RedisCluster
from redis.crc import key_slot
from redis.exceptions import (
    AskError,
    AuthenticationError,
    BusyLoadingError,
    ClusterDownError,
    MovedError,
    NoPermissionError,
    OutOfMemoryError,
    ReadOnlyError,
    RedisClusterException,
    RedisError,
    ResponseError,
    TryAgainError,
)

from chat_streams.model.errors import RedisRefused, RedisUnavailable
from chat_streams.runtime.retry import REDIS_ERRORS, retry_forever
from chat_streams.runtime.settings import Settings
from tables.functions import LIBRARY, NAME, NAMES, counter_of, function

log = structlog.get_logger()

SLOTS: Final = 16_384
SCAN_KEYS: Final = 500
"""About the number of keys that a server looks at for one ``SCAN``; it does nothing else meanwhile."""
_NOT_NOW: Final = (
    *(MovedError, AskError, TryAgainError, ClusterDownError, BusyLoadingError, ReadOnlyError),
    OutOfMemoryError,
)
_STATES: Final = ("BUSY ", "MISCONF ", "NOREPLICAS ", "MASTERDOWN ", "OOM ")
"""Beginnings of error answers that concern the server, not the command: it succeeds later, or on another server."""

NOEVICTION: Final = "noeviction"
"""The only ``maxmemory-policy`` that deletes nothing when memory is full."""

Command = tuple[Any, ...]


class Eviction(NamedTuple):
    """The policy of a server for when its memory is full (``maxmemory-policy``), and the keys it has evicted so far."""

    server: str
    policy: str
    evicted: int

    @property
    def warning(self) -> str:
        """The fault of the policy, and what to do about it; "" for none."""
        if self.policy == NOEVICTION:
            return ""
        return (
            f"Redis at {self.server}: maxmemory-policy is {self.policy}, which deletes inboxes when memory is full;"
            f" it must be {NOEVICTION} (CONFIG SET, redis.conf, or the parameter group of ElastiCache)"
        )


class FormerLibrary(NamedTuple):
    """A function library of another version on a server; ``calls`` counts its functions' calls, if it can tell."""

    server: str
    name: str
    calls: int | None


def connect(settings: Settings, **options: Any) -> RedisCluster:
    """Return a client of redis-py that is not connected yet, with the addresses, TLS and login of the settings."""
    url, *_ = settings.redis.split(",")
    user, password = settings.redis_login() or (None, None)
    if settings.redis_tls:
        options["ssl_ca_certs"] = None if settings.redis_ca_file is None else str(settings.redis_ca_file)
    return RedisCluster.from_url(
        url,
        startup_nodes=[ClusterNode(host, port) for host, port in settings.redis_addresses[1:]],
        username=user,
        password=password,
        socket_timeout=settings.engine_timeout,
        socket_connect_timeout=settings.engine_timeout,
        **options,
    )


class Cluster:
    """A client of the cluster. Commands are function calls, ``("FCALL", name, n, key, …)``, routed by the first key."""

    def __init__(self, settings: Settings) -> None:
        # Twice as many: those that redis-py has still to close after a change of the cluster are counted, too.
        self._redis = connect(settings, max_connections=2 * settings.redis_connections)
        self._configured = dict(self._redis.nodes_manager.startup_nodes)
        self._settings = settings
        self._tags: tuple[object, list[tuple[ClusterNode, str]]] | None = None
        self._is_stale = False
        """True when a node did not answer, or said that another one has its slots: they are to be looked up again."""
        self._looking_up = asyncio.Lock()
        self._failed: str | None = None
        """The node that did not answer last, which is asked for the slots when no other one tells them."""
        # The connection pool of a node raises when it is empty; here callers wait instead.
        self._free_connections = asyncio.Semaphore(settings.redis_connections)

    async def close(self) -> None:
        """Close all connections."""
        await self._redis.aclose()

    async def check(self) -> None:
        """Raise ``RedisRefused`` if Redis rejects our login or rights, or we its certificate or policy.

        A Redis that is down is logged.
        """
        redis, login = f"Redis at {self._settings.redis} (CHAT_REDIS)", self._settings.redis_login()
        try:
            await self.ping()
            await self.time()
            evictions = await self.evictions()
        except RedisUnavailable as error:
            for cause in _causes(error):
                if isinstance(cause, ssl.SSLCertVerificationError):
                    raise RedisRefused(
                        f"{redis}: its certificate is not accepted: {cause.verify_message}; trusted is"
                        f" {self._settings.redis_ca_file or 'what the system trusts'} (CHAT_REDIS_CA_FILE)"
                    ) from error
                if isinstance(cause, ssl.SSLError):
                    raise RedisRefused(f"{redis} speaks no TLS that we understand: {cause.reason}") from error
                if isinstance(cause, AuthenticationError):
                    name = (login and login[0]) or "default"
                    raise RedisRefused(
                        f"{redis} refused user {name} (CHAT_REDIS_USER, CHAT_REDIS_PASSWORD): {cause}"
                    ) from error
                if _forbidden(cause):
                    raise RedisRefused(f"{redis}: {cause}; the rights it needs are in docs/security.md") from error
            log.warning("redis is away", error=repr(error))
        else:
            for warning in filter(None, (eviction.warning for eviction in evictions)):
                raise RedisRefused(warning)

    async def ping(self) -> None:
        """Raise ``RedisUnavailable`` when the cluster cannot carry out a command."""
        await self.call(("FCALL_RO", function("read"), 2, "{ping}:inbox", "{ping}:devices", "0-0", 1, 1, 0, ""))

    async def time(self) -> int:
        """Return the time by Redis, by whose clock keys expire, in s since the epoch; raises ``RedisUnavailable``."""
        return int(await self.call(("FCALL_RO", function("time"), 1, "{ping}:inbox")))

    async def call(self, command: Command) -> Any:
        """Return the answer to one command, as ``pipeline`` does."""
        return (await self.pipeline([command]))[0]

    async def pipeline(self, commands: Sequence[Command]) -> list[Any]:
        """Return the answers to commands for keys anywhere in the cluster, in order: one round trip to each primary.

        Raises ``RedisUnavailable`` when any command cannot be carried out now, and the first ``ResponseError`` that is
        an answer. Others may have been carried out by then, so commands must be safe to repeat.
        """
        answers = await self.each(commands)
        for answer in answers:
            if isinstance(answer, ResponseError):
                raise answer
        return answers

    async def each(self, commands: Sequence[Command]) -> list[Any]:
        """Return answers as ``pipeline`` does; each may be a ``ResponseError``, for which the caller has to look."""
        return await self._carry_out(lambda: self._round(commands))

    async def patient(self, commands: Sequence[Command], what: str) -> list[Any]:
        """Return answers as ``pipeline`` does, retrying with backoff for as long as Redis is down.

        ``what`` names the commands for the log and the metrics.
        """
        return await retry_forever(what, RedisUnavailable, lambda: self.pipeline(commands))

    async def on_primaries(self, command: Callable[[str], Command]) -> list[Any]:
        """Return the answers of all primaries to one command each; raises ``RedisUnavailable``.

        ``command`` gets a hash tag whose keys belong to the primary, and returns the command to send there.
        """

        async def once() -> list[Any]:
            return [(await self._send(node, [command(tag)]))[0] for node, tag in self._tagged_primaries()]

        answers = await self._carry_out(once)
        for answer in answers:
            if isinstance(answer, ResponseError):
                raise RedisUnavailable(str(answer))
        return answers

    async def scan(self, pattern: str) -> AsyncGenerator[list[bytes], None]:
        """Yield the keys of all primaries that match a pattern, some at a time, a key perhaps more than once.

        Raises ``RedisUnavailable``; then it has to begin anew, since the cursor of one server means nothing to another.
        """

        async def primaries() -> list[Any]:
            return [node for node, _ in self._tagged_primaries()]

        for node in await self._carry_out(primaries):
            cursor = b"0"
            while True:
                command = ("SCAN", cursor, "MATCH", pattern, "COUNT", SCAN_KEYS)
                (answer,) = await self._carry_out(partial(self._send, node, [command]))
                if isinstance(answer, ResponseError):
                    raise RedisUnavailable(str(answer))
                cursor, keys = answer
                yield keys
                if cursor == b"0":
                    break

    async def evictions(self) -> list[Eviction]:
        """Return what each primary does when its memory is full; raises ``RedisUnavailable``.

        It is read by INFO, since managed Redis forbids CONFIG.
        """
        servers: list[str] = []

        async def once() -> list[Any]:
            nodes = [node for node, _ in self._tagged_primaries()]
            servers[:] = [node.name for node in nodes]
            return [
                answer for node in nodes for answer in await self._send(node, [("INFO", "memory"), ("INFO", "stats")])
            ]

        answers = await self._carry_out(once)
        return [
            parse_eviction(server, memory, stats)
            for server, memory, stats in zip(servers, answers[::2], answers[1::2], strict=True)
        ]

    async def former_libraries(self) -> list[FormerLibrary]:
        """Return the function libraries of other versions on each primary; raises ``RedisUnavailable``."""

        async def once() -> list[Any]:
            return [await self._former_libraries(node) for node, _ in self._tagged_primaries()]

        return [library for of_node in await self._carry_out(once) for library in of_node]

    async def _former_libraries(self, node: ClusterNode) -> list[FormerLibrary]:
        (listed,) = await self._send(node, [("FUNCTION", "LIST", "LIBRARYNAME", NAMES)])
        if isinstance(listed, ResponseError):
            raise listed
        found = []
        for library in listed:
            name = library[b"library_name"].decode()
            if name == NAME:
                continue
            calls = None
            if counter_of(name) in {function[b"name"].decode() for function in library[b"functions"]}:
                (calls,) = await self._send(node, [("FCALL_RO", counter_of(name), 0)])
            found.append(FormerLibrary(node.name, name, None if isinstance(calls, ResponseError) else calls))
        return found

    async def delete_library(self, library: FormerLibrary) -> None:
        """Delete a library from its primary, if it still is one; raises ``RedisUnavailable``."""

        async def once() -> list[Any]:
            nodes = [node for node, _ in self._tagged_primaries() if node.name == library.server]
            return [
                answer for node in nodes for answer in await self._send(node, [("FUNCTION", "DELETE", library.name)])
            ]

        await self._carry_out(once)

    async def _carry_out(self, once: Callable[[], Awaitable[list[Any]]]) -> list[Any]:
        """Run ``once`` with a known topology, and again after loading the library where a primary lacks it."""
        try:
            async with self._free_connections, asyncio.timeout(2 * self._settings.engine_timeout):
                await self._look_up_slots()
                answers = await once()
                if any(_no_function(answer) for answer in answers):
                    await self._load()
                    answers = await once()
                for answer in answers:
                    if _is_away(answer):
                        raise answer
        except (RedisError, RedisClusterException, OSError, TimeoutError) as error:
            REDIS_ERRORS.inc()
            raise RedisUnavailable(f"{type(error).__name__}: {error}") from error
        return answers

    def _tagged_primaries(self) -> list[tuple[ClusterNode, str]]:
        slots = self._redis.nodes_manager.slots_cache
        # The client replaces this dictionary when the topology changes, and changes its entries on MOVED.
        shape = (id(slots), tuple(node.name for node in self._redis.get_primaries()))
        if self._tags is None or self._tags[0] != shape:
            lowest: dict[str, tuple[ClusterNode, int]] = {}
            for slot, nodes in sorted(slots.items()):
                lowest.setdefault(nodes[0].name, (nodes[0], slot))
            self._tags = shape, [(node, _tag_of(slot)) for node, slot in lowest.values()]
        return self._tags[1]

    async def _look_up_slots(self) -> None:
        """Read which node has which slots, if that is not known, or not any more.

        Calls that are under way to other nodes go on. redis-py's own way, to close the client, makes them all fail.
        """
        await self._redis.initialize()
        if not self._is_stale:
            return
        async with self._looking_up:
            if self._is_stale:
                manager = self._redis.nodes_manager
                # The client replaces the configured nodes by those that it discovered, which may all be gone by now.
                manager.startup_nodes = self._configured | manager.startup_nodes
                # Connections of nodes that stay are opened again one by one, each once it is free.
                await manager.initialize(last_failed_node_name=self._failed)
                self._tags, self._is_stale = None, False

    async def _round(self, commands: Sequence[Command]) -> list[Any]:
        by_node: dict[str, tuple[ClusterNode, list[int]]] = {}
        find = self._redis.nodes_manager.get_node_from_slot
        for index, command in enumerate(commands):
            node = find(key_slot(command[3].encode()))
            by_node.setdefault(node.name, (node, []))[1].append(index)
        answers: list[Any] = [None] * len(commands)

        async def one(node: ClusterNode, indexes: list[int]) -> None:
            for index, answer in zip(indexes, await self._send(node, [commands[i] for i in indexes]), strict=True):
                answers[index] = answer

        if len(by_node) == 1:
            await one(*next(iter(by_node.values())))
        else:
            done = await asyncio.gather(
                *(one(node, indexes) for node, indexes in by_node.values()), return_exceptions=True
            )
            for failure in done:
                if failure is not None:
                    raise failure
        return answers

    async def _send(self, node: ClusterNode, commands: Sequence[Command]) -> list[Any]:
        connection = node.acquire_connection()
        try:
            await node.disconnect_if_needed(connection)
            await connection.connect()  # type: ignore[no-untyped-call]
            # connection.pack_commands does the same in Python, which takes 2.5 us a message instead of 0.7.
            await connection.send_packed_command([hiredis.pack_command(command) for command in commands])
            answers = []
            async with asyncio.timeout(self._settings.engine_timeout):
                for _ in commands:
                    try:
                        # One timeout covers all answers: one for each took half of a worker's time for an append.
                        answers.append(await connection.read_response(timeout=math.inf))
                    except ResponseError as error:
                        answers.append(error)
                        self._is_stale |= _is_elsewhere(error)
        except BaseException as error:
            self._is_stale, self._failed = True, node.name
            was_taken_apart = isinstance(error, AttributeError) and not connection.is_connected
            # The next user of this connection must not read the answers to these commands.
            await connection.disconnect(nowait=True)
            if was_taken_apart:
                # redis-py closes what is free of a node that left the cluster, also if it is in use again by then.
                raise ConnectionError(f"the connection to {node.name} was closed") from error
            raise
        else:
            return answers
        finally:
            node.release(connection)

    async def _load(self) -> None:
        log.info("loading the function library into redis")
        for node in self._redis.get_primaries():
            (answer,) = await self._send(node, [("FUNCTION", "LOAD", LIBRARY)])
            if isinstance(answer, ResponseError) and "already exists" not in str(answer):
                raise answer


def parse_eviction(server: str, memory: object, stats: object) -> Eviction:
    """Return what a server's sections ``memory`` and ``stats`` of INFO say; raises ``RedisUnavailable`` if nothing."""
    texts = [b"" if isinstance(answer, Exception) else bytes(answer) for answer in (memory, stats)]  # type: ignore[call-overload]
    policy = re.search(rb"^maxmemory_policy:([\w-]+)", texts[0], re.MULTILINE)
    evicted = re.search(rb"^evicted_keys:(\d+)", texts[1], re.MULTILINE)
    if policy is None or evicted is None:
        raise RedisUnavailable(
            f"Redis at {server}: INFO does not say maxmemory_policy and evicted_keys: {memory!r:.200}"
        )
    return Eviction(server, policy[1].decode(), int(evicted[1]))


@lru_cache(maxsize=SLOTS)
def _tag_of(slot: int) -> str:
    """Return a hash tag whose keys are in ``slot``."""
    return next(str(n) for n in itertools.count() if key_slot(str(n).encode()) == slot)


def _is_away(answer: object) -> bool:
    if isinstance(answer, _NOT_NOW) or _no_function(answer) or _forbidden(answer):
        return True
    return isinstance(answer, ResponseError) and str(answer).startswith(_STATES)


def _is_elsewhere(error: ResponseError) -> bool:
    """Return whether an answer says that this node does not have these slots, or is a primary no more."""
    return isinstance(error, (MovedError, ReadOnlyError, ClusterDownError)) or str(error).startswith("MASTERDOWN ")


def _forbidden(answer: object) -> bool:
    # For the commands inside a function, Redis 7.0 reports missing rights without the code NOPERM.
    return isinstance(answer, NoPermissionError) or (
        isinstance(answer, ResponseError) and str(answer).startswith("The user executing the script can't")
    )


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _no_function(answer: object) -> bool:
    return isinstance(answer, ResponseError) and "Function not found" in str(answer)
