"""The bytes of inbox pages that may be under way to a gateway at once, over all its connections."""

from __future__ import annotations

from collections import OrderedDict


class FetchBudget:
    """Grants bytes for pages to connections; those that were refused wait in line, each once.

    ``page_bytes`` is the most that one page is asked for: once so much is free, whoever is next may ask again.
    """

    def __init__(self, total: int, page_bytes: int) -> None:
        self._free = total
        self._page_bytes = page_bytes
        self._waiting: OrderedDict[bytes, None] = OrderedDict()

    @property
    def free(self) -> int:
        """Bytes that may be granted."""
        return self._free

    @property
    def waiting(self) -> int:
        """Connections in line."""
        return len(self._waiting)

    def reserve(self, connection: bytes, size: int) -> bool:
        """Grant bytes, or put the connection at the end of the line; one that is in it keeps its place."""
        if self._free < size:
            self._waiting.setdefault(connection)
            return False
        self._free -= size
        self.forget(connection)
        return True

    def release(self, size: int) -> None:
        """Take bytes back; ``next_in_line`` says who may have them."""
        self._free += size

    def next_in_line(self) -> bytes | None:
        """Take who waits for longest out of the line, if there is room for a page; ``None`` otherwise."""
        if not self._waiting or self._free < self._page_bytes:
            return None
        return self._waiting.popitem(last=False)[0]

    def forget(self, connection: bytes) -> None:
        """Take a connection that has ended out of the line."""
        self._waiting.pop(connection, None)
