"""Settings of the interpreter that every service process shares."""

from __future__ import annotations

import gc
from typing import Final

GARBAGE: Final = 50_000
"""Containers made and not freed, between two looks of the garbage collector at them."""


def tame_garbage_collector() -> None:
    """Look for cycles among what is new seldom, and among what there was at the start never.

    A batch is thousands of tuples and no cycles: by default, the collector looks at each 700 of them.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(GARBAGE, 10, 10)
