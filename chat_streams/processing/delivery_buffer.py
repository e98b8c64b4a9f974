"""The way from a worker to the gateways: what goes to one slot travels in few records."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Awaitable, Iterable
from functools import partial
from typing import Any, Final

from chat_streams.kafka.names import OUTGOING_MESSAGES
from chat_streams.model.records import OUTGOING, Announce, Delivery, Displaced, InboxAdvanced, Missed, Registered
from chat_streams.processing.ordered import OrderedApp
from chat_streams.runtime.spans import Header, Mark
from tables.inbox import InboxPage

RECORD_BYTES: Final = 512 * 1024
ITEM_BYTES: Final = 128

Item = Delivery | Missed | Registered | InboxAdvanced | Displaced | Announce


class DeliveryBuffer:
    """Collects what a batch of records has for the gateways, then sends it."""

    def __init__(self, app: OrderedApp) -> None:
        self._app = app
        self._records: defaultdict[int, list[list[Item]]] = defaultdict(lambda: [[]])
        self._sizes: defaultdict[int, int] = defaultdict(int)
        # By slot and the number of its record.
        self._headers: defaultdict[tuple[int, int], list[Header]] = defaultdict(list)

    def add(self, slot: int, item: Item, parents: Iterable[str] = ()) -> None:
        """Add an item for the gateway that leases ``slot``; order is kept.

        ``parents`` are traceparents of the sampled messages in it.
        """
        size = ITEM_BYTES + (len(item.messages) if isinstance(item, Delivery) else 0)
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
        """Add a page of an inbox; ``parents`` as for ``add``."""
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

    def send(self) -> Awaitable[Any] | None:
        """Start sending all that was added; await the answer for Kafka's acknowledgement of it."""
        if not self._records:
            return None
        # All at once: one after the other, the second of a batch would come behind the first of the next batch, and a
        # gateway would take that for a gap.
        return asyncio.gather(
            *(
                # Encoded late: until then the connections that get the same page share its bytes.
                self._app.produce(
                    OUTGOING_MESSAGES, slot, None, partial(OUTGOING.encode, tuple(record)), self._headers.get((slot, n))
                )
                for slot, records in self._records.items()
                for n, record in enumerate(records)
            )
        )
