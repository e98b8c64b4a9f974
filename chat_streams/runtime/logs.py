"""Log lines on stderr, in JSON or formatted for a terminal; lines of libraries have the same format.

Log lines name messages, users, connections and partitions by their ids. Bodies and tokens are never logged; the secrets
of the settings are taken out of whatever a library says.
"""

from __future__ import annotations

import json
import logging
import logging.config
import sys
from collections.abc import Iterable
from typing import Any, Final, Literal
from urllib.parse import quote

import structlog

Format = Literal["auto", "json", "console"]

QUIET: Final = ("aiokafka", "faust", "mode", "aiohttp.access", "botocore", "aiobotocore")
HIDDEN: Final = "***"
SECRET: Final = 6
"""Characters of the shortest secret that is hidden: each "a" would be, else. A shorter one is no secret for long."""
_hidden: Final[list[str]] = []
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


def configure(form: Format, secrets: Iterable[str] = ()) -> None:
    """Set the format of all log lines of this process; ``auto`` is JSON unless stderr is a terminal.

    No line shows one of the ``secrets``.
    """
    _hidden[:] = _spellings(secrets)
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
        return [structlog.dev.ConsoleRenderer(colors=terminal, exception_formatter=plain), _hide]
    return [structlog.processors.format_exc_info, structlog.processors.JSONRenderer(), _hide]


def _spellings(secrets: Iterable[str]) -> list[str]:
    """Return secrets as a line may have them: as they are, in a URL, in JSON or in a ``repr``, or in one of these."""
    found = {secret for secret in secrets if len(secret) >= SECRET}
    found |= {quote(secret, safe=safe) for secret in found for safe in ("", "/")}
    for _ in range(2):
        found |= {spelling[1:-1] for text in found for spelling in (json.dumps(text), repr(text))}
    return sorted(found, key=len, reverse=True)


def _hide(logger: Any, name: str, line: str) -> str:
    for secret in _hidden:
        line = line.replace(secret, HIDDEN)
    return line
