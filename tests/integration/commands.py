"""Runs ``faust -A chat_streams <command>`` as an operator does: a process of its own against the stack of the tests."""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from docker.local.layout import ROOT
from docker.local.probes import WITHIN_S
from docker.local.temporary_stack import Stack


class Done(NamedTuple):
    """How a command ended."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """What it printed, as JSON."""
        assert self.code in (0, 1), self
        return json.loads(self.out)


async def run(stack: Stack, *arguments: object, code: int = 0, **settings: object) -> Done:
    """Run a command and check its exit code; ``settings`` are its own: ``retry_window=1`` and so on."""
    done = await call(stack, arguments, settings)
    assert done.code == code, done
    return done


async def call(
    stack: Stack, arguments: Sequence[object], settings: Mapping[str, object] = {}, within_s: float = WITHIN_S
) -> Done:
    """Run a command, whatever its exit code; ends it and raises ``TimeoutError`` when it takes longer."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "faust", "-A", "chat_streams", *map(str, arguments)),
        cwd=ROOT,
        env=stack.environment | {f"CHAT_{name.upper()}": str(value) for name, value in settings.items()},
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        async with asyncio.timeout(within_s):
            out, err = await process.communicate()
    except BaseException:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        raise
    return Done(process.returncode or 0, out.decode(), err.decode())
