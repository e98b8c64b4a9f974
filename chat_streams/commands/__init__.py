"""The commands for operators and developers, one module each."""

from __future__ import annotations

from chat_streams.commands import token, topics
from chat_streams.service import Service


def register(app: Service) -> None:
    """Add all commands to an app."""
    for module in (topics, token):
        module.register(app)
