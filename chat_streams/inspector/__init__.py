"""The stream inspection web view: where is a message, and why isn't it delivered.

faust -A chat_streams.inspector worker
"""

from __future__ import annotations

from typing import Any


def __getattr__(name: str) -> Any:
    """``faust -A chat_streams.inspector`` looks for ``app`` here; who imports a module needs none."""
    if name != "app":
        raise AttributeError(name)
    from chat_streams.inspector.worker import app

    return app
