"""A wrong clock for one process, by libfaketime (Debian's package ``faketime``); its monotonic clock is left alone."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from docker.local.layout import StackError
from docker.local.part import Part

HOUR: Final = 3600
# The loader puts the folder of this machine's libraries in place of $LIB.
LIBRARY: Final = "/usr/$LIB/faketime/libfaketimeMT.so.1"
VARIABLES: Final = ("LD_PRELOAD", "FAKETIME", "FAKETIME_DONT_FAKE_MONOTONIC", "NO_FAKE_STAT")


def set_clock(part: Part, ahead_s: int) -> None:
    """Have a part run on a clock that is ahead by so many seconds (below 0: behind) from its next start on.

    Raises ``StackError`` where libfaketime is missing. With it ``time.sleep`` fails (EINVAL); no service calls that.
    """
    if not any(Path("/usr").glob("lib*/**/faketime/libfaketimeMT.so.1")):
        raise StackError("libfaketime is not installed: sudo apt install faketime")
    values = (LIBRARY, f"{ahead_s:+d}s", "1", "1")
    part.environment |= dict(zip(VARIABLES, values, strict=True))


def set_right(part: Part) -> None:
    """Have a part run on the machine's clock from its next start on."""
    for name in VARIABLES:
        part.environment.pop(name, None)
