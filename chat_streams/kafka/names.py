"""The names of the topics and consumer groups, and the partition of a user (``partition_of``)."""

from __future__ import annotations

import os
import re
from functools import lru_cache
from typing import Final, NamedTuple

from aiokafka.partitioner import murmur2

MESSAGING: Final = "messaging"
NOTIFICATION: Final = "notification"
HISTORY: Final = "history"
GROUPS: Final = (MESSAGING, NOTIFICATION, HISTORY)
"""The services that consume as a group; each group has the name of its service."""
MAX_RECORD: Final = 2 * 1024 * 1024
OUTGOING_SECONDS: Final = 3600


class Names(NamedTuple):
    """The names that one version of the topics partitioned by user, and of the session registry, has."""

    incoming_messages: str
    session_events: str
    inbox_requests: str
    registry: str

    @classmethod
    def of(cls, version: int) -> Names:
        """Return the names of a version (1 or higher)."""
        ending = "" if version == 1 else f"-{version}"
        names = ("incoming_messages", "session_events", "inbox_requests", "sessions")
        return cls(*(f"{name}{ending}" for name in names))

    @property
    def logs(self) -> tuple[str, str, str]:
        """The topics from which inboxes are restored."""
        return self.incoming_messages, self.session_events, self.inbox_requests

    @property
    def registry_changelog(self) -> str:
        """The changelog topic of the registry, as Faust names it."""
        return f"messaging-{self.registry}-changelog"


def version_of(text: str) -> int:
    """Return the version of the topics that a variable gives; 1 for what ``Settings`` refuses."""
    return int(text) if re.fullmatch(r"[0-9]{1,4}", text, re.ASCII) else 1


# Read here, since Faust's agents need the names of their topics on import.
VERSION: Final = version_of(os.environ.get("CHAT_TOPICS_VERSION", "1"))
_NAMES: Final = Names.of(VERSION)
INCOMING_MESSAGES: Final = _NAMES.incoming_messages
SESSION_EVENTS: Final = _NAMES.session_events
INBOX_REQUESTS: Final = _NAMES.inbox_requests
REGISTRY: Final = _NAMES.registry
REGISTRY_CHANGELOG: Final = _NAMES.registry_changelog
OUTGOING_MESSAGES: Final = "outgoing_messages"
DEAD_LETTERS: Final = "dead_letters"
GENERATIONS: Final = "log_generations"
LOSSES: Final = "log_losses"
SERVICE_STATS: Final = "service_stats"


@lru_cache(maxsize=65_536)
def partition_of(user: str, partitions: int) -> int:
    """Return the partition of a user: that of the bytes of the user id."""
    return partition_for(user.encode(), partitions)


def partition_for(key: bytes, partitions: int) -> int:
    """Return the partition of a key, as Kafka's default partitioner does (murmur2)."""
    return int((murmur2(key) & 0x7FFFFFFF) % partitions)
