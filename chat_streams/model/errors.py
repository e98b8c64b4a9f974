"""The errors of Connect Chat, each with a text that says what is wrong and what to do.

    ConnectChatError
    ├── SettingsError                   a setting is wrong
    ├── TopicsError                     the topics are not as they must be
    ├── KafkaUnavailable                Kafka did not answer, or lacks the topic
    ├── RedisUnavailable                Redis did not do what was asked for: try again
    ├── RedisRefused                    Redis does not accept us: trying again is no use
    ├── HistoryUnavailable              the chat database did not answer: try again
    ├── KeysUnavailable                 the keys that tokens are checked with did not come
    ├── InvalidToken                    a token does not prove who this is
    │   └── ExpiredToken                it did once
    ├── FencingTokenStale               a Redis server does not know this worker's fencing token
    ├── NoFreeSlot                      all slots are leased by other gateways
    ├── UndecodableRecord               bytes are no record of their topic
    ├── UnknownVersion                  a newer program wrote the record
    ├── Rewound                         the records of a partition will come again
    ├── UnknownUser                     nothing is known of a user
    └── RedriveRefused                  dead letters do not exist, or are not redriven

The gateway's errors about one frame or one connection, and the inspector's about one request, stand where they are
raised; they derive from ConnectChatError, too.
"""

from __future__ import annotations


class ConnectChatError(Exception):
    """The base of all errors that are raised here on purpose."""


class SettingsError(ConnectChatError):
    """A setting is wrong; the text names it."""


class TopicsError(ConnectChatError):
    """The topics are not as they must be; the text says what is wrong and what to do."""


class KafkaUnavailable(ConnectChatError):
    """Kafka did not answer, or does not have the topic; the text says which."""


class RedisUnavailable(ConnectChatError):
    """Redis did not do what was asked for: it is away, full, moving slots or choosing a new primary. Try again."""


class RedisRefused(ConnectChatError):
    """Redis does not want us, and trying again is no use; the text says why, and which setting to look at."""


class HistoryUnavailable(ConnectChatError):
    """The chat database did not answer; try again."""


class KeysUnavailable(ConnectChatError):
    """The JWKS URL does not answer: nothing is known of the token."""


class InvalidToken(ConnectChatError):
    """The token does not say who this is; the text says why and holds nothing of the token."""


class ExpiredToken(InvalidToken):
    """The token was good once: a new one will do."""


class FencingTokenStale(ConnectChatError):
    """A Redis server does not know this worker: it may have lost its newest writes, or another worker took over.

    Nothing was appended to it. The log must be applied again from before what may be lost (``Inbox.fence``).
    """


class NoFreeSlot(ConnectChatError):
    """All slots are leased by other gateways."""


class UndecodableRecord(ConnectChatError):
    """The bytes are no record of this topic: a dead letter."""


class UnknownVersion(ConnectChatError):
    """A newer program wrote the record: this one must stop, not skip it (deploy consumers before producers)."""


class Rewound(ConnectChatError):
    """Raised by ``apply`` after it called ``OrderedApp.rewind``: the records of that partition will come again."""


class UnknownUser(ConnectChatError):
    """Nothing is known of a user; the text says where it was looked for."""


class RedriveRefused(ConnectChatError):
    """Some dead letters don't exist, or are not redriven; the text says which and why."""
