"""The part of a session that a handler may use: a protocol class."""

from __future__ import annotations

from collections.abc import Coroutine
from typing import Any, Protocol

from gateway.publisher import Sender
from gateway.services import Services
from gateway.state.delivery_state import DeliveryState
from gateway.state.order_barrier import OrderBarrier
from gateway.state.rate_limit import RateLimiter
from gateway.writer import Writer


class SessionContext(Sender, Protocol):
    """The session that a frame came on, after its hello."""

    user: str
    services: Services
    state: DeliveryState
    writer: Writer
    rate_limiter: RateLimiter
    barrier: OrderBarrier | None
    unconfirmed: int
    """Messages on their way to the log."""
    history_requests: int
    """History requests that are being answered."""

    @property
    def log(self) -> Any:
        """The logger for a line about this connection, which then says whose it is."""

    def hold_back(self, to: str, message_id: str) -> None:
        """Hold back further messages to a recipient until this one, which is refused, is sent again."""

    def on_acknowledged(self, messages: int) -> None:
        """Note that the client's cursor has moved, over so many forwarded messages."""

    def update_reading(self) -> None:
        """Go on reading or pause: something that counts against the client has changed."""

    def spawn(self, work: Coroutine[Any, Any, None]) -> None:
        """Run work that ends with the session."""
