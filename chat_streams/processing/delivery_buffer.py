"""A buffer for what a worker sends to the gateways: the items for one slot travel in few records."""

from __future__ import annotations

import asyncio
import itertools
from collections import defaultdict
from collections.abc import Awaitable, Iterable
from functools import partial
from typing import Any, Final

from chat_streams.kafka.names import OUTGOING_MESSAGES
from chat_streams.model.records import OUTGOING, Announce, Delivery, Displaced, InboxAdvanced, Missed, Registered
from chat_streams.processing.ordered import OrderedApp
from chat_streams.processing.room import Room
from chat_streams.runtime.spans import Header, Mark
from tables.inbox import InboxPage

RECORD_BYTES: Final = 512 * 1024
ITEM_BYTES: Final = 128

Item = Delivery | Missed | Registered | InboxAdvanced | Displaced | Announce


def _size(item: Item) -> int:
    return ITEM_BYTES + (len(item.messages) if isinstance(item, Delivery) else 0)


class DeliveryBuffer:
    """Collects the items that a batch of records produces for the gateways, then sends them."""

    def __init__(self, app: OrderedApp) -> None:
        self._app = app
        self._records: defaultdict[int, list[list[Item]]] = defaultdict(lambda: [[]])
        self._sizes: defaultdict[int, int] = defaultdict(int)
        # Trace headers, by slot and the index of the record among those for the slot.
        self._headers: defaultdict[tuple[int, int], list[Header]] = defaultdict(list)

    def add(self, slot: int, item: Item, parents: Iterable[str] = ()) -> None:
        """Add an item for the gateway that leases ``slot``, after all earlier items for it.

        ``parents`` are the traceparents of the sampled messages in the item.
        """
        size = _size(item)
        if self._sizes[slot] and self._sizes[slot] + size > RECORD_BYTES:
            self._records[slot].append([])
            self._sizes[slot] = 0
        record = self._records[slot][-1]
        for parent in parents:
            self._headers[slot, len(self._records[slot]) - 1].append(Mark(len(record), parent).header())
        record.append(item)
        self._sizes[slot] += size

    def page(
        self,
        slot: int,
        user: str,
        connection: bytes,
        epoch: int,
        request: int,
        page: InboxPage,
        parents: Iterable[str] = (),
    ) -> None:
        """Add a page of an inbox, in answer to ``request`` of a connection; ``parents`` as for ``add``."""
        if page.missed:
            self.add(slot, Missed(user, connection, epoch, request, page.after, page.until))
        else:
            self.add(
                slot,
                Delivery(
                    user=user,
                    connection=connection,
                    epoch=epoch,
                    request=request,
                    after=page.after,
                    until=page.until,
                    first=page.first,
                    count=page.count,
                    messages=page.messages,
                ),
                parents,
            )

    def send(self, room: Room | None = None) -> Awaitable[Any] | None:
        """Start to send all items; returns an awaitable of Kafka's acknowledgement, or ``None`` without items.

        In ``room``, each record takes its bytes until Kafka has acknowledged it, or it was given up.
        """
        if not self._records:
            return None
        # All records are sent at once. If each waited for the one before, the second record of this batch would come
        # after the first of the next batch, and a gateway would see a gap.
        written = [
            # Encoded late, because until then the connections that get the same page share its bytes.
            self._app.produce(
                OUTGOING_MESSAGES, slot, None, partial(OUTGOING.encode, tuple(record)), self._headers.get((slot, n))
            )
            for slot, records in self._records.items()
            for n, record in enumerate(records)
        ]
        if room is not None:
            for future, items in zip(written, itertools.chain.from_iterable(self._records.values()), strict=True):
                future.add_done_callback(room.take(sum(map(_size, items))))
        return written[0] if len(written) == 1 else asyncio.gather(*written)
