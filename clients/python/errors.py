"""The errors of the client.

ChatError
├── ConnectionClosed        the connection has ended for good, or never began
│   └── ProtocolError       the server sent what the protocol does not allow
│       └── ChainBroken     a part of the inbox was left out or repeated
├── RequestRefused          the server refused one message or request
└── SendTimeout             the fate of one message or request is not known
"""

from __future__ import annotations


class ChatError(Exception):
    """The base of the errors of this client."""


class ConnectionClosed(ChatError):
    """The connection has ended for good, or never began.

    ``code`` is a WebSocket close code or HTTP status, or one of ``unreachable``, ``protocol``, ``chain``, ``closed``.
    """

    def __init__(self, code: int | str, message: str) -> None:
        super().__init__(message)
        self.code = code


class ProtocolError(ConnectionClosed):
    """The server sent what the protocol does not allow, so the connection was given up."""

    def __init__(self, message: str, code: str = "protocol") -> None:
        super().__init__(code, message)


class ChainBroken(ProtocolError):
    """A ``messages`` or ``missed`` frame does not continue where the one before it ended."""

    def __init__(self, expected: str, after: str) -> None:
        super().__init__(f"a frame continues after position {after}, the last one ended at {expected}", "chain")


class RequestRefused(ChatError):
    """The server refused one message or request; ``retry`` tells whether the same may work later."""

    def __init__(self, code: str, message: str, retry: bool) -> None:
        super().__init__(f"{message} ({code})")
        self.code, self.message, self.retry = code, message, retry


class SendTimeout(ChatError, TimeoutError):
    """The fate of one message or request is not known: no answer came in time. Send it again under the same id."""
