"""Waiting for an engine that is away: in place, with a growing delay, for as long as it takes."""

from __future__ import annotations

import contextlib
from collections.abc import Awaitable, Callable
from typing import TypeVar

import stamina
import structlog
from stamina.instrumentation import RetryDetails, set_on_retry_hooks

from chat_streams.runtime.statistics import engines

log = structlog.get_logger()

T = TypeVar("T")

_Errors = type[Exception] | tuple[type[Exception], ...]


def _say(details: RetryDetails) -> None:
    error, delay = repr(details.caused_by), round(details.wait_for, 2)
    log.warning("an engine is away, waiting", doing=details.name, retry_in_s=delay, error=error)


# stamina's own hook would log the arguments of what is tried again.
set_on_retry_hooks([_say])


async def retry_forever(doing: str, on: _Errors, attempt: Callable[[], Awaitable[T]], attempts: int | None = None) -> T:
    """Return what ``attempt`` returns, calling it again while it raises ``on``: at once, then after 0.1 s up to 2 s.

    ``doing`` is for the log and the metrics. Raises other exceptions at once, and ``on`` after ``attempts`` more.
    """
    # stamina costs 28 us a call, which nobody has to pay while the engine is there.
    errors = on if isinstance(on, tuple) else (on,)
    with contextlib.suppress(*errors):
        return await attempt()
    retries = stamina.retry_context(
        on=on, attempts=attempts, timeout=None, wait_initial=0.1, wait_max=2.0, wait_jitter=0.1, wait_exp_base=2
    )
    async for again in retries.with_name(doing, (), {}):
        with again:
            engines[f"engine_retries_{doing}"] += 1
            return await attempt()
    raise AssertionError("stamina raises what the last attempt raised")
