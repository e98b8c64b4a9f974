"""The errors of the client.

ChatError
├── ConnectionClosed        the client has ended, or could not connect
│   └── ProtocolError       the server violated the protocol
│       └── ChainBroken     the server left out or repeated a part of the inbox
├── RequestRefused          one message or request was refused
├── RequestTimeout          one request was not answered in time
└── SendTimeout             one message was not answered in time
"""

from __future__ import annotations


class ChatError(Exception):
    """The base class of the errors of this client."""


class ConnectionClosed(ChatError):
    """The client has ended and does not reconnect, or could not connect at first.

    ``code`` is a WebSocket close code or HTTP status, or one of ``unreachable``, ``protocol``, ``chain``, ``closed``.
    """

    def __init__(self, code: int | str, message: str) -> None:
        super().__init__(message)
        self.code = code


class ProtocolError(ConnectionClosed):
    """The server violated the protocol, so the client has ended."""

    def __init__(self, message: str, code: str = "protocol") -> None:
        super().__init__(code, message)


class ChainBroken(ProtocolError):
    """A ``messages`` or ``missed`` frame does not continue where the one before it ended."""

    def __init__(self, expected: str, after: str) -> None:
        super().__init__(f"a frame continues after position {after}, the last one ended at {expected}", "chain")


class RequestRefused(ChatError):
    """One message or request was refused, by the server or here; ``retry`` tells whether the same may work later."""

    def __init__(self, code: str, message: str, retry: bool) -> None:
        super().__init__(f"{message} ({code})")
        self.code, self.message, self.retry = code, message, retry


class RequestTimeout(ChatError, TimeoutError):
    """One request, for history or a ping, was not answered in time."""


class SendTimeout(ChatError, TimeoutError):
    """One message was not answered in time, so it may be in the log or not. Send it again under the same id."""
