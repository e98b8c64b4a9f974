"""Failures of engines (Kafka, Redis, DynamoDB): counted, and retried in place, after 0.1 s to 2 s, without end."""

from __future__ import annotations

import contextlib
from collections.abc import Awaitable, Callable
from typing import Final, TypeVar

import stamina
import structlog
from prometheus_client import Counter
from stamina.instrumentation import RetryDetails, set_on_retry_hooks

from chat_streams.model.errors import Interrupted
from chat_streams.runtime.metrics import REGISTRY
from chat_streams.runtime.tasks import uncancelled

log = structlog.get_logger()

T = TypeVar("T")

_Errors = type[Exception] | tuple[type[Exception], ...]

ENGINE_ERRORS: Final = Counter(
    "connect_chat_engine_errors_total",
    "Requests that an engine did not answer as wanted.",
    ["engine"],
    registry=REGISTRY,
)
KAFKA_ERRORS: Final = ENGINE_ERRORS.labels("kafka")
REDIS_ERRORS: Final = ENGINE_ERRORS.labels("redis")
DYNAMODB_ERRORS: Final = ENGINE_ERRORS.labels("dynamodb")
ENGINE_RETRIES: Final = Counter(
    "connect_chat_engine_retries_total",
    "Attempts made again, by what was being done.",
    ["doing"],
    registry=REGISTRY,
)


def _log_retry(details: RetryDetails) -> None:
    delay = round(details.wait_for, 2)
    log.warning("an engine is away, waiting", doing=details.name, retry_in_s=delay, error=repr(details.caused_by))


# Replaces stamina's own hook, which would log the arguments of the call.
set_on_retry_hooks([_log_retry])


async def retry_forever(doing: str, on: _Errors, attempt: Callable[[], Awaitable[T]], attempts: int | None = None) -> T:
    """Call ``attempt`` until it succeeds, and return its result.

    The second call follows at once, each later one after a delay that grows from 0.1 s to 2 s. A cancellation that is
    not of this task, but comes out of ``attempt``, counts as one of ``on``.

    Args:
        doing: Description of the attempt, for the log and the metrics.
        on: Exceptions after which to try again; others are raised at once.
        attempt: Function to call.
        attempts: Calls after the first one; if they all fail, the last exception is raised. ``None`` for no limit.
    """
    # The first attempt is made without stamina, which costs 28 us a call.
    errors = (*on, Interrupted) if isinstance(on, tuple) else (on, Interrupted)
    with contextlib.suppress(*errors):
        return await uncancelled(attempt())
    retries = stamina.retry_context(
        on=errors, attempts=attempts, timeout=None, wait_initial=0.1, wait_max=2.0, wait_jitter=0.1, wait_exp_base=2
    )
    async for again in retries.with_name(doing, (), {}):
        with again:
            ENGINE_RETRIES.labels(doing).inc()
            return await uncancelled(attempt())
    raise AssertionError("stamina raises what the last attempt raised")
