"""The stream processors of Connect Chat, and what flows between them."""

from __future__ import annotations

from typing import Any


def __getattr__(name: str) -> Any:
    """Load ``app`` only when ``faust -A chat_streams`` asks for it, so that importing this package builds no app."""
    if name != "app":
        raise AttributeError(name)
    from chat_streams.commands.app import app

    return app
