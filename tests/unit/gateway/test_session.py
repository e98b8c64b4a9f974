"""The table from a client's frame to its handler."""

from __future__ import annotations

import typing

from gateway.protocol import ClientFrame, Hello
from gateway.session import HANDLERS


def test_each_frame_of_a_client_but_the_hello_has_a_handler() -> None:
    assert set(HANDLERS) == set(typing.get_args(ClientFrame)) - {Hello}
