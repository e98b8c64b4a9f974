"""The process of a service: its garbage collector, its end by a fault, and the limit of its stop."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import threading
from typing import Final

import structlog

log = structlog.get_logger()

GARBAGE: Final = 50_000
"""The number of containers allocated and not freed after which the garbage collector runs."""
GRACE_SECONDS: Final = 15.0
"""Seconds that a stop may take. Whatever stops services waits longer before it kills: ``stop_grace_period`` in Compose,
``stop_timeout`` in the stack for AWS, ``Part.stop_seconds`` here."""

_faults: Final[list[BaseException]] = []
_limits: Final[list[threading.Timer]] = []


def tame_garbage_collector() -> None:
    """Make the garbage collector run rarely, and never examine the objects that exist at this call.

    A batch is thousands of tuples and no cycles; by default, the collector runs after every 700 of them.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(GARBAGE, 10, 10)


def crash(what: str, error: BaseException) -> None:
    """Stop this process in order because of a fault of its own, which is logged; its exit code tells (``failed``)."""
    _faults.append(error)
    log.critical(f"{what} stops by a fault", error=repr(error), exc_info=error)
    signal.raise_signal(signal.SIGTERM)


def failed() -> bool:
    """Return whether this process stops by a fault of its own."""
    return bool(_faults)


def limit_stop(loop: asyncio.AbstractEventLoop, within_s: float = GRACE_SECONDS) -> None:
    """End the process by force where its stop is not over after so many seconds; the first call counts.

    That loses nothing, no more than a SIGKILL does, and the log says what the stop was waiting for.
    """
    if not _limits:
        _limits.append(threading.Timer(within_s, _end, (loop, within_s)))
        _limits[0].daemon = True
        _limits[0].start()


def _end(loop: asyncio.AbstractEventLoop, within_s: float) -> None:
    try:
        waiting = [f"{task.get_name()}: {task.get_coro()!r}"[:200] for task in asyncio.all_tasks(loop)]
        log.critical("the stop took too long, ending by force", seconds=within_s, tasks=waiting)
    finally:
        # Also where nobody reads the log any more.
        os._exit(1)
