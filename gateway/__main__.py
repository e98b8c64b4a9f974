"""``python -m gateway``: run the gateway."""

from __future__ import annotations

import asyncio
import sys

from aiokafka.errors import KafkaError

from chat_streams.compat import uvloop_streams
from chat_streams.model.errors import RedisRefused, SettingsError, TopicsError
from chat_streams.runtime import descriptors, logs
from chat_streams.runtime.memory import return_large_buffers
from chat_streams.runtime.process import failed, tame_garbage_collector
from chat_streams.runtime.settings import settings, warn_of_unknown_settings
from chat_streams.runtime.tasks import log_loop_error
from gateway import listener
from gateway.app import create_app

SHUTDOWN_SECONDS = 1.0
"""For aiohttp to end the sockets that have not gone when asked (``app.DRAIN_SECONDS``)."""
BACKLOG = 4_096
"""Connections that wait to be accepted. Past it the kernel drops them, and their clients try again after 1, 3, 7 s:
with aiohttp's 128, of 1,000 users who came at once some did. The kernel's own limit (somaxconn) is 4,096."""


def main() -> None:
    """Run until SIGTERM or SIGINT; exit code 1 with one line on stderr when it can't start."""
    uvloop_streams.install()
    limit = descriptors.raise_limit()
    try:
        s = settings()
        logs.configure(s.log_format, s.secrets())
        warn_of_unknown_settings()
        tame_garbage_collector()
        return_large_buffers()
        loop = asyncio.new_event_loop()
        loop.set_exception_handler(log_loop_error)
        listener.run_app(
            create_app(s),
            host=s.gateway_host,
            port=s.gateway_port,
            backlog=BACKLOG,
            # Also until the first request is whole: a socket on which none comes is not counted as a connection.
            keepalive_timeout=s.hello_timeout,
            connections=s.max_connections,
            limit=limit,
            access_log=None,
            shutdown_timeout=SHUTDOWN_SECONDS,
            loop=loop,
            handler_cancellation=False,
        )
    except (SettingsError, TopicsError, RedisRefused, KafkaError) as error:
        sys.exit(f"gateway: {error}")

    if failed():
        sys.exit(1)


if __name__ == "__main__":
    main()
