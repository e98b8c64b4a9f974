"""The settings of the garbage collector in every service process."""

from __future__ import annotations

import gc
from typing import Final

GARBAGE: Final = 50_000
"""The number of containers allocated and not freed after which the garbage collector runs."""


def tame_garbage_collector() -> None:
    """Make the garbage collector run rarely, and never examine the objects that exist at this call.

    A batch is thousands of tuples and no cycles; by default, the collector runs after every 700 of them.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(GARBAGE, 10, 10)
