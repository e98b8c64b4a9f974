"""What becomes of a connection to Redis on which something went wrong."""

from __future__ import annotations

from typing import Any, cast

import pytest
from redis.asyncio.cluster import ClusterNode
from redis.exceptions import NoPermissionError, OutOfMemoryError, ResponseError

from chat_streams.model.errors import RedisUnavailable
from chat_streams.runtime.settings import Settings
from tables.redis_cluster import Cluster


class Connection:
    """Stands in for a node with one connection, whose writing fails."""

    def __init__(self, error: BaseException) -> None:
        self.error = error
        self.disconnected = self.released = False

    def acquire_connection(self) -> Connection:
        return self

    def release(self, connection: Connection) -> None:
        assert connection.disconnected
        self.released = True

    async def connect(self) -> None: ...

    def pack_commands(self, commands: Any) -> list[bytes]:
        return [b"" for _ in commands]

    async def send_packed_command(self, command: Any) -> None:
        raise self.error

    async def disconnect(self, nowait: bool) -> None:
        self.disconnected = True


@pytest.mark.parametrize(
    ("error", "raised"),
    [
        (ConnectionResetError(), OSError),
        (TimeoutError(), TimeoutError),
    ],
)
async def test_nobody_reads_the_answers_meant_for_another(error: Exception, raised: type[Exception]) -> None:
    cluster = Cluster(Settings())
    node = Connection(error)
    with pytest.raises(raised):
        await cluster._send(cast(ClusterNode, node), [("PING",)])
    assert node.released


@pytest.mark.parametrize(
    "answer",
    [
        NoPermissionError("this user has no permissions to run the 'xadd' command"),
        ResponseError("The user executing the script can't run this command or subcommand script: f"),
        OutOfMemoryError("command not allowed when used memory > 'maxmemory'."),
        ResponseError("OOM command not allowed when used memory > 'maxmemory'. script: f, on @user_function:1."),
        ResponseError("BUSY Redis is busy running a script."),
        ResponseError("MISCONF Redis is configured to save RDB snapshots, but is unable to persist to disk."),
        ResponseError("NOREPLICAS Not enough good replicas to write."),
    ],
)
async def test_what_redis_does_not_want_now_is_waited_for_and_no_fault_of_the_message(
    monkeypatch: pytest.MonkeyPatch, answer: ResponseError
) -> None:
    """Anything else that is answered makes a dead letter of the record."""
    cluster = Cluster(Settings())

    async def nothing() -> None: ...

    async def answers(commands: Any) -> list[Any]:
        return [answer]

    monkeypatch.setattr(cluster._redis, "initialize", nothing)
    monkeypatch.setattr(cluster, "_round", answers)
    with pytest.raises(RedisUnavailable):
        await cluster.pipeline([("FCALL", "append", 1, "{u:bob}:inbox")])


def test_more_nodes_than_one_may_be_named() -> None:
    cluster = Cluster(Settings(redis="redis://127.0.0.1:7000,127.0.0.1:7001,127.0.0.1:7002", redis_password="secret"))
    assert sorted(cluster._configured) == [f"127.0.0.1:{port}" for port in (7000, 7001, 7002)]
    assert {node.connection_kwargs["password"] for node in cluster._configured.values()} == {"secret"}
