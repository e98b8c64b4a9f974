"""The inspector, a web site for operators that shows where a message is and why it is not delivered.

To start it: ``faust -A chat_streams.inspector worker``.
"""

from __future__ import annotations

from typing import Any


def __getattr__(name: str) -> Any:
    """Load ``app`` only when ``faust -A chat_streams.inspector`` asks for it, so that an import builds no app."""
    if name != "app":
        raise AttributeError(name)
    from chat_streams.inspector.worker import app

    return app
