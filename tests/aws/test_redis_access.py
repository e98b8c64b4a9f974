"""The access string of the Redis user on ElastiCache, checked against Valkey itself, whose language it is in."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from redis import Redis
from redis.backoff import ConstantBackoff
from redis.exceptions import ConnectionError as Unreachable
from redis.retry import Retry

from docker.aws.engines import REDIS_ACCESS
from docker.local.engines import _redis_server

ROOT = Path(__file__).resolve().parents[2]
BY_THE_CLIENT = {
    ("CLUSTER", "SLOTS"),
    ("FUNCTION", "LOAD", "library"),
    ("FUNCTION", "LIST"),
    ("FUNCTION", "DELETE", "x"),
    ("PING",),
    ("AUTH",),
}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    socket = tmp_path_factory.mktemp("redis") / "s"
    command = [_redis_server(), "--port", "0", "--unixsocket", str(socket), "--save", ""]
    process = subprocess.Popen(command, cwd=socket.parent, stdout=subprocess.DEVNULL)
    try:
        retry = Retry(ConstantBackoff(0.05), 400, supported_errors=(Unreachable, FileNotFoundError))
        client: Any = Redis(unix_socket_path=str(socket), retry=retry, decode_responses=True)
        client.ping()
        client.execute_command("ACL", "SETUSER", "chat", *REDIS_ACCESS.split())
        yield client
        client.close()
    finally:
        process.terminate()
        process.wait(30)


def commands_of_the_code() -> set[str]:
    """Return the commands that the code sends, and those that scripts and functions call."""
    files = [p for folder in ("tables", "gateway", "chat_streams") for p in (ROOT / folder).glob("**/*.py")]
    text = "\n".join(path.read_text() for path in [*files, *(ROOT / "tables").glob("**/*.lua")])
    sent = re.findall(r"""\(\s*"([A-Z_]+)", (?:function\(|"LOAD"|script|_LOOK|"return )""", text)
    return {*sent, *re.findall(r"redis\.p?call\('([A-Z]+)'", text)}


def may(server: Any, *command: str) -> bool:
    name, *arguments = command
    arity = int(server.execute_command("COMMAND", "INFO", name)[name.lower()]["arity"])
    arguments += ["1"] * (abs(arity) - 1 - len(arguments))
    return bool(server.execute_command("ACL", "DRYRUN", "chat", name, *arguments) == "OK")


def test_the_user_may_do_what_the_code_does(server: Any) -> None:
    used = commands_of_the_code()
    assert {"FCALL", "FCALL_RO", "EVAL", "EVAL_RO", "XADD", "FUNCTION"} <= used, "the source is no longer understood"
    wanted = {(name,) for name in used - {"FUNCTION"}} | BY_THE_CLIENT
    assert [command for command in sorted(wanted) if not may(server, *command)] == []


@pytest.mark.parametrize("command", ["FLUSHALL", "KEYS *", "CONFIG GET *", "ACL LIST", "FUNCTION FLUSH", "SHUTDOWN"])
def test_the_user_may_not_do_harm_to_all(server: Any, command: str) -> None:
    assert not may(server, *command.split())
