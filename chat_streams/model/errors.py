"""The exception classes of Connect Chat; the texts are given where they are raised.

    ConnectChatError
    ├── SettingsError                   a setting is wrong
    ├── EngineUnavailable               an engine did not do what was asked, through no fault of what it was asked
    │   ├── TopicsError                 the topics are missing, wrong or not accessible
    │   ├── KafkaUnavailable            Kafka did not answer, or lacks the topic
    │   │   └── NoSuchPartition         it did: there is no such topic or partition
    │   ├── RedisUnavailable            Redis could not carry out a command: try again
    │   ├── HistoryUnavailable          the chat database did not answer: try again
    │   └── Interrupted                 what was awaited was cancelled, and not by who awaited it
    ├── BeyondLog                       a position is above all that the log holds
    ├── RedisRefused                    Redis rejects this process: trying again is useless
    ├── KeysUnavailable                 the keys for checking tokens could not be fetched
    ├── InvalidToken                    a token does not prove the identity of its bearer
    │   └── ExpiredToken                it did, until it expired
    ├── FencingTokenStale               a Redis server does not know this worker's fencing token
    ├── NoFreeSlot                      all slots are leased by other gateways
    ├── UndecodableRecord               the bytes are not a record of their topic
    ├── UnknownVersion                  a newer program wrote the record
    ├── ConsumerEnded                   a Kafka consumer can receive nothing any more
    ├── Rewound                         a partition was rewound: its records are read again
    ├── LaneDropped                     writes to a partition were given up together, from one on
    ├── UnknownUser                     no store knows the user
    └── RedriveRefused                  dead letters do not exist, or cannot be redriven

The gateway's errors about one frame or one connection, and the inspector's errors about one request, are defined in
the modules that raise them. They derive from ConnectChatError, too.
"""

from __future__ import annotations


class ConnectChatError(Exception):
    """The base class of all errors that this project raises on purpose."""


class SettingsError(ConnectChatError):
    """A setting is wrong; the text names the setting."""


class EngineUnavailable(ConnectChatError):
    """An engine did not do what was asked, through no fault of what was asked: a worker waits for it."""


class TopicsError(EngineUnavailable):
    """The topics are missing, wrong or not accessible; the text says what is wrong and what to do."""


class KafkaUnavailable(EngineUnavailable):
    """Kafka did not answer, or does not have the topic; the text says which of the two."""


class NoSuchPartition(KafkaUnavailable):
    """Kafka has no such topic or partition; the text says which of the two."""


class BeyondLog(ConnectChatError):
    """A position is above all that the log holds: nobody was ever told of it."""


class RedisUnavailable(EngineUnavailable):
    """Redis could not carry out a command: it is down, full, moving slots or electing a new primary. Try again."""


class RedisRefused(ConnectChatError):
    """Redis rejects our login or rights, or we its certificate: trying again is useless. The text names the setting."""


class HistoryUnavailable(EngineUnavailable):
    """The chat database (DynamoDB) did not answer, or returned an error. Try again."""


class KeysUnavailable(ConnectChatError):
    """The JWKS URL does not answer, so that the token could not be checked."""


class InvalidToken(ConnectChatError):
    """The token does not prove the identity of its bearer; the text says why, and quotes nothing of the token."""


class ExpiredToken(InvalidToken):
    """The token was valid and has expired: the client needs a new one."""


class FencingTokenStale(ConnectChatError):
    """A Redis server does not know this worker's fencing token: it lost writes, or another worker took over.

    The server appended nothing. The log must be applied again from before the writes that may be lost
    (``Inbox.fence``).
    """


class NoFreeSlot(ConnectChatError):
    """All slots are leased by other gateways."""


class UndecodableRecord(ConnectChatError):
    """The bytes are not a record of this topic; the record becomes a dead letter."""


class UnknownVersion(ConnectChatError):
    """A newer program wrote the record; this one must stop, not skip it. Deploy consumers before producers."""


class ConsumerEnded(ConnectChatError):
    """A consumer can receive nothing any more, by an error of the Kafka client: only a new process helps."""


class Interrupted(EngineUnavailable, ConnectionError):
    """An awaited task was cancelled, and not by who awaited it: a library's client that ends does so."""


class Rewound(ConnectChatError):
    """Raised by an ``Apply`` callback after ``OrderedApp.rewind``: the partition's records are delivered again."""


class LaneDropped(ConnectChatError):
    """All writes to a partition that Kafka has not confirmed were given up; the cause is why. Derive them again."""


class UnknownUser(ConnectChatError):
    """No store knows the user; the text says which stores were searched."""


class RedriveRefused(ConnectChatError):
    """Some dead letters do not exist or cannot be redriven; the text says which and why."""
