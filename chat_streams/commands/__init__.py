"""The commands for operators and developers, one module each."""

from __future__ import annotations

from chat_streams.commands import audit, dead_letters, lag, replay, token, topics, trace, user
from chat_streams.processing.service import Service


def register(app: Service) -> None:
    """Add all commands to an app."""
    for module in (audit, topics, token, replay, dead_letters, trace, lag, user):
        module.register(app)
