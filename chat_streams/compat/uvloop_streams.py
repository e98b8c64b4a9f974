"""The event loop uvloop, with the errors that libraries on top of it expect of a connection that was reset."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import uvloop


def install() -> None:
    """Make uvloop the event loop, with writes that raise ``ConnectionResetError`` on a connection that is closed.

    asyncio says nothing there, uvloop raises ``RuntimeError``; aiokafka and redis-py expect an ``OSError``. With a
    ``RuntimeError`` aiokafka's fetcher ends for good: its consumer gets nothing more, and nobody is told.
    """
    uvloop.install()
    for name in ("write", "writelines"):
        write = getattr(asyncio.StreamWriter, name)
        if write.__module__ != __name__:
            setattr(asyncio.StreamWriter, name, _checked(write))


def _checked(write: Callable[[asyncio.StreamWriter, Any], None]) -> Callable[[asyncio.StreamWriter, Any], None]:
    def checked(self: asyncio.StreamWriter, data: Any) -> None:
        try:
            write(self, data)
        except RuntimeError as error:
            if not self.is_closing():
                raise
            raise ConnectionResetError(str(error)) from error

    return checked
