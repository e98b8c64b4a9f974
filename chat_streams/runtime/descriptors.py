"""The limit of file descriptors: each connection has one, and a shell's soft limit is often 1,024."""

from __future__ import annotations

import resource
from typing import Final

RESERVE: Final = 256
"""Descriptors for what a service opens by itself: connections to engines, files, and answers to what it refuses."""


def raise_limit() -> int:
    """Raise the soft limit of this process to the hard one, where that is allowed, and return what it is then."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    except (OSError, ValueError):
        # macOS has no hard limit, and a lower one that it does not tell.
        return soft
    return hard


def reserve(limit: int) -> int:
    """Return how many descriptors of a limit are kept back from connections of clients."""
    return min(RESERVE, limit // 4)
