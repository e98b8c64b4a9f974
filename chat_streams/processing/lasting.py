"""Work that goes on for as long as a Faust app or one of its services: it ends with that, or else crashes it.

Faust takes a task for done that ends, also one that ends by a cancellation of something it awaited.
"""

from __future__ import annotations

import functools
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import faust
import mode

from chat_streams.model.errors import Interrupted
from chat_streams.runtime.tasks import uncancelled

S = TypeVar("S", bound=mode.Service)


def lasting(method: Callable[[S], Awaitable[None]]) -> Any:
    """Decorate a method of a service: it runs until the service stops; when it ends before, the service crashes."""

    @functools.wraps(method)
    async def run(self: S) -> None:
        await _until_stopped(self, method.__name__, method(self))

    return mode.Service.task(run)


def run_lasting(app: faust.App, function: Callable[[], Awaitable[None]]) -> None:
    """Have ``function`` run until an app stops; when it ends before, the app crashes."""

    @functools.wraps(function)
    async def run() -> None:
        await _until_stopped(app, function.__name__, function())

    app.task(run)


async def _until_stopped(service: mode.Service, name: str, work: Awaitable[None]) -> None:
    try:
        await uncancelled(work, name)
    except Interrupted:
        if not service.should_stop:
            raise
    if not service.should_stop:
        raise RuntimeError(f"{name} has ended")
