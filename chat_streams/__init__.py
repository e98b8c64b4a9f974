"""The stream processors of Connect Chat, and what flows between them."""

from __future__ import annotations

from typing import Any


def __getattr__(name: str) -> Any:
    """``faust -A chat_streams`` looks for ``app`` here; whoever imports a module of this package needs none."""
    if name != "app":
        raise AttributeError(name)
    from chat_streams.commands.app import app

    return app
