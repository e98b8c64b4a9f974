"""Log lines on stderr, in JSON or formatted for a terminal; lines of libraries have the same format.

Log lines name messages, users, connections and partitions by their ids. Bodies and tokens are never logged.
"""

from __future__ import annotations

import logging
import logging.config
import sys
from typing import Any, Final, Literal

import structlog

Format = Literal["auto", "json", "console"]

QUIET: Final = ("aiokafka", "faust", "mode", "aiohttp.access", "botocore", "aiobotocore")
_TIME: Final = structlog.processors.TimeStamper(fmt="iso", utc=True)


def config(form: Format) -> dict[str, Any]:
    """Return the ``logging.config.dictConfig`` that gives lines of libraries the format of our own."""
    return {
        "version": 1,
        "disable_existing_loggers": False,
        "formatters": {
            "ours": {
                "()": structlog.stdlib.ProcessorFormatter,
                "foreign_pre_chain": [structlog.stdlib.add_log_level, structlog.stdlib.add_logger_name, _TIME],
                "processors": [structlog.stdlib.ProcessorFormatter.remove_processors_meta, *_rendering(form)],
            }
        },
        # Faust's worker replaces sys.stderr.
        "handlers": {
            "stderr": {"class": "logging.StreamHandler", "formatter": "ours", "stream": "ext://sys.__stderr__"}
        },
        # At the default level, NOTSET, aiokafka builds debug records that are thrown away: 10 % of a worker's time.
        "loggers": {name: {"level": "WARNING"} for name in QUIET},
        "root": {"level": "INFO", "handlers": ["stderr"]},
    }


def configure(form: Format) -> None:
    """Set the format of all log lines of this process; ``auto`` is JSON unless stderr is a terminal."""
    structlog.configure(
        processors=[structlog.processors.add_log_level, _TIME, *_rendering(form)],
        logger_factory=structlog.PrintLoggerFactory(sys.__stderr__),
        cache_logger_on_first_use=True,
    )
    logging.config.dictConfig(config(form))


def _rendering(form: Format) -> list[Any]:
    terminal = sys.__stderr__ is not None and sys.__stderr__.isatty()
    if form == "console" or (form == "auto" and terminal):
        # structlog's default, rich, would print the values of variables, and so the bodies of messages.
        plain = structlog.dev.plain_traceback
        return [structlog.dev.ConsoleRenderer(colors=terminal, exception_formatter=plain)]
    return [structlog.processors.format_exc_info, structlog.processors.JSONRenderer()]
