"""The connections whose hello has not come yet: a bounded number, of which the one silent for longest must go."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable

GiveUp = Callable[[], None]


class HelloQueue:
    """Connections that wait for their hello, each by what ends the wait.

    A client says hello as soon as it may. So past ``limit`` it is not the newest that is given up, as a full gateway
    would refuse it: somebody who opens connections and is silent would keep out all others.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._waiting: OrderedDict[GiveUp, None] = OrderedDict()

    def __len__(self) -> int:
        return len(self._waiting)

    def add(self, give_up: GiveUp) -> None:
        """Add a connection; one too many gives up the one that waits for longest."""
        self._waiting[give_up] = None
        if len(self._waiting) > self._limit:
            self._waiting.popitem(last=False)[0]()

    def remove(self, give_up: GiveUp) -> None:
        """Remove a connection whose hello is there, or that was given up."""
        self._waiting.pop(give_up, None)
