"""The app behind ``faust -A chat_streams <command>``: commands only, no agents."""

from __future__ import annotations

from chat_streams.commands import register
from chat_streams.processing.service import Service

app = Service("commands")
register(app)
