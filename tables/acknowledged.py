"""The count of what was acknowledged and left its inbox.

A module of its own: what a process imports it shows, and only gateway and notification acknowledge.
"""

from __future__ import annotations

from typing import Final

from prometheus_client import Counter

from chat_streams.runtime.metrics import REGISTRY

REMOVED: Final = Counter(
    "connect_chat_inbox_messages_removed_total", "Acknowledged by all devices of their user.", registry=REGISTRY
)
