"""The journey of one message through the system, assembled from the log and the stores, and its verdict (pure).

Times are in ms since the epoch. The time of a record is its append time, by the clock of Kafka.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

from chat_streams.model.position import Position
from chat_streams.model.records import (
    FIRST_REQUEST,
    PUSH,
    Acknowledge,
    DeadLetter,
    Delivery,
    Displaced,
    InboxAdvanced,
    InboxRequests,
    Message,
    Missed,
    Outgoing,
    Redriven,
    Registered,
    SessionEvents,
    UserConnected,
    UserDisconnected,
)
from chat_streams.model.redrive import Redrive, first_time

MESSAGING: Final = "messaging"
MAX_HOPS: Final = 500
"""The largest number of stages of one kind: a client that keeps reconnecting is sent a message again and again."""


class Copy(NamedTuple):
    """The message as one record of the log holds it: times of acceptance and logging, ``size`` of its JSON in bytes."""

    position: Position
    partition: int
    accepted_at: int
    logged_at: int
    size: int
    redrive: Redrive | None

    @classmethod
    def of(cls, position: Position, partition: int, logged_at: int, message: Message, redrive: Redrive | None) -> Copy:
        """Return the copy for a message that was found in the log."""
        at = message.time_in(first_time(logged_at, redrive))
        return cls(position, partition, at, logged_at, len(message.json), redrive)

    @property
    def window_at(self) -> int:
        """The time that its retry window goes by: that of the first record that held it."""
        return first_time(self.logged_at, self.redrive)

    @property
    def for_messaging(self) -> bool:
        """True if messaging is to deliver it, false if it was redriven for other apps only."""
        return self.redrive is None or MESSAGING in self.redrive.apps


class Name(NamedTuple):
    """The identity of a message: its sender, its recipient and the id that the sender chose."""

    sender: str
    to: str
    id: str


class Letter(NamedTuple):
    """A dead letter of one of the copies, and when it was redriven, if it was."""

    number: int
    app: str
    reason: str
    offset: int
    first_at: int
    last_at: int
    redriven_at: int | None


@dataclass
class Connection:
    """A connection of the recipient; ``heard_at`` is when it was announced last."""

    device: str
    number: int
    slot: int
    epoch: int
    since: int
    heard_at: int
    gone_at: int | None = None


def observe_session(connections: dict[bytes, Connection], event: UserConnected | UserDisconnected, at: int) -> None:
    """Record a session event, whose record has the time ``at``, in the connections by id."""
    known = connections.get(event.connection)
    if not isinstance(event, UserConnected):
        if known is not None and known.epoch == event.epoch and known.gone_at is None:
            known.gone_at = at
        return
    if known is not None:
        # A gateway that lost its lease and took another slot announces its connections again, under that one.
        known.heard_at, known.slot, known.epoch = at, event.slot, event.epoch
        return
    connections[event.connection] = Connection(event.device, event.number, event.slot, event.epoch, at, at)


@dataclass
class Inbox:
    """The recipient's inbox as it is now, at the message's position.

    ``stored`` states whether the message is in it, with ``before`` messages ahead of it. If the position is in a gap
    ``(gap, …]``, whose messages are in history only, ``gap`` is where that begins.
    """

    top: Position | None = None
    floor: Position | None = None
    cursors: dict[str, Position] = field(default_factory=dict)
    stored: bool = False
    gap: Position | None = None
    before: int = 0


class Hop(NamedTuple):
    """A stage of the journey; ``what`` is a keyword, ``detail`` a text for people."""

    at: int
    what: str
    detail: str


class Verdict(NamedTuple):
    """The outcome of the message: ``fate`` is a keyword for programs, ``text`` a sentence for people."""

    fate: str
    text: str


@dataclass
class Journey:
    """All that was found of one message, in one or more copies."""

    name: Name
    copies: list[Copy]
    letters: list[Letter] = field(default_factory=list)
    hops: list[Hop] = field(default_factory=list)
    connections: dict[bytes, Connection] = field(default_factory=dict)
    acknowledged: dict[str, int] = field(default_factory=dict)
    """The time at which each device acknowledged it."""
    sent: dict[bytes, int] = field(default_factory=dict)
    """The time at which it was last sent towards each connection."""
    inbox: Inbox = field(default_factory=Inbox)
    in_history: bool | None = None
    """True if the chat database has it; ``None`` if the database did not answer."""
    _counts: Counter[str] = field(default_factory=Counter)
    next_offsets: dict[str, int | None] = field(default_factory=dict)
    """The offset that each app applies next on the message's partition; ``None`` if the app never ran there."""

    @property
    def applied(self) -> Copy | None:
        """The copy that is, was, or will be in the inbox; ``None`` if messaging could not apply any."""
        return next((c for c in self.copies if c.for_messaging and not self._is_dead(c)), None)

    @property
    def first(self) -> Copy:
        """The copy that was accepted first."""
        return self.copies[0]

    def _is_dead(self, copy: Copy) -> bool:
        return any(letter.app == MESSAGING and letter.offset == copy.position.offset for letter in self.letters)

    def add_hop(self, at: int, what: str, detail: str) -> None:
        """Add a stage, unless there are ``MAX_HOPS`` of the kind already."""
        self._counts[what] += 1
        if self._counts[what] <= MAX_HOPS:
            self.hops.append(Hop(at, what, detail))

    def add_copies(self) -> None:
        """Add the copies and the dead letters to the stages."""
        applied = self.applied
        for copy in self.copies:
            where = f"partition {copy.partition}, offset {copy.position.offset}, position {copy.position}"
            if copy.redrive is not None:
                self.add_hop(copy.logged_at, "redriven", f"for {', '.join(sorted(copy.redrive.apps))}: {where}")
                continue
            self.add_hop(copy.accepted_at, "accepted", f"by a gateway, {copy.size} bytes")
            retry = " (a retry, dropped)" if copy != applied and copy != self.first else ""
            self.add_hop(copy.logged_at, "logged", f"{where}{retry}")
        for letter in self.letters:
            self.add_hop(letter.last_at, "dead letter", f"number {letter.number} of {letter.app}: {letter.reason}")

    def add_sessions(self, events: SessionEvents, at: int) -> None:
        """Record the recipient's connections and disconnections; ``at`` is the time of the events' record."""
        for event in events:
            if event.user != self.name.to:
                continue
            if isinstance(event, UserConnected) and event.connection not in self.connections:
                for other in self.connections.values():
                    if other.device == event.device and other.number < event.number and other.gone_at is None:
                        other.gone_at = at
            observe_session(self.connections, event, at)

    def add_connections(self) -> None:
        """Add the connections and disconnections since the message was accepted to the stages."""
        for key, connection in self.connections.items():
            if connection.since >= self.first.accepted_at:
                self.add_hop(connection.since, "connected", self._line(key))
            if connection.gone_at is not None and connection.gone_at >= self.first.accepted_at:
                self.add_hop(connection.gone_at, "disconnected", self._line(key))

    def add_requests(self, requests: InboxRequests, at: int) -> None:
        """Record the recipient's fetches and acknowledgements that concern the message."""
        applied = self.applied
        for request in requests:
            if request.user != self.name.to or applied is None:
                continue
            if isinstance(request, Acknowledge):
                if request.position >= applied.position and request.device not in self.acknowledged:
                    self.acknowledged[request.device] = at
                    if request.forwarded_at:
                        # An acknowledgement of several deliveries has the time of the last one.
                        latest = "" if request.position == applied.position else ", at the latest"
                        detail = f"by its gateway to device {request.device}{latest}"
                        self.add_hop(request.forwarded_at, "forwarded", detail)
                    self.add_hop(at, "acknowledged", f"by device {request.device}, up to {request.position}")
            elif request.after < applied.position:
                self.add_hop(at, "asked for", f"what is above {request.after}, {self._line(request.connection)}")

    def add_outgoing(self, items: Outgoing, slot: int, at: int) -> None:
        """Record what was sent of the message, or about it, towards the recipient's connections."""
        applied = self.applied
        if applied is None:
            return
        position = applied.position
        for item in items:
            if (
                isinstance(item, Delivery | Missed | Registered | InboxAdvanced | Displaced)
                and item.user == self.name.to
            ):
                line = self._line(item.connection, slot)
                if isinstance(item, Delivery):
                    if item.after < position <= item.until and b'"pos":"%b"' % str(position).encode() in item.messages:
                        what = {PUSH: "pushed", FIRST_REQUEST: "first page"}.get(item.request, "fetched")
                        self.sent[item.connection] = at
                        self.add_hop(at, what, f"with {item.count} in ({item.after}, {item.until}], {line}")
                elif isinstance(item, Missed):
                    if item.after < position <= item.until:
                        self.add_hop(at, "missed", f"told that ({item.after}, {item.until}] is in history only, {line}")
                elif isinstance(item, InboxAdvanced) and item.until >= position:
                    self.add_hop(at, "announced", f"something up to {item.until}, {line}")

    def ordered(self) -> list[Hop]:
        """Return the stages by time."""
        return sorted(self.hops, key=lambda hop: hop.at)

    def _line(self, connection: bytes, slot: int | None = None) -> str:
        known = self.connections.get(connection)
        device = f"device {known.device}, " if known is not None else ""
        slot = known.slot if slot is None and known is not None else slot
        return f"{device}connection {connection.hex()[:8]}" + (f", gateway slot {slot}" if slot is not None else "")


def journeys(name: Name, copies: Sequence[Copy], letters: Sequence[Letter], window_ms: int) -> list[Journey]:
    """Group the copies of one name, in the order of their positions, into a journey for each delivery of it.

    Messaging drops a copy as a retry if an earlier one is in the same retry window or in one beside it
    (``append`` in ``inbox.lua``). A copy that messaging could not apply does not count as an earlier one.
    """
    found: list[Journey] = []
    windows: set[int] = set()
    dead = {letter.offset for letter in letters if letter.app == MESSAGING}
    for copy in sorted(copies, key=lambda c: c.position):
        window = copy.window_at // window_ms
        again = not copy.for_messaging or copy.position.offset in dead
        dropped = bool(windows & {window - 1, window, window + 1})
        if not found or (not again and not dropped and found[-1].applied is not None):
            found.append(Journey(name, []))
        if not again:
            windows.add(window)
        found[-1].copies.append(copy)
        found[-1].letters += [letter for letter in letters if letter.offset == copy.position.offset]
    return found


def letter_of(number: int, letter: DeadLetter, redriven: Redriven | None) -> Letter:
    """Return the journey's entry for a dead letter."""
    return Letter(
        number,
        letter.app,
        letter.reason,
        letter.offset,
        letter.first_at,
        letter.last_at,
        None if redriven is None else redriven.at,
    )


class Rules(NamedTuple):
    """The times that a verdict depends on, in ms.

    ``sweep_ms`` is the interval at which open connections are announced again, ``ttl_ms`` the inbox's TTL. Connections
    are known since ``heard_from`` only, deliveries since ``sent_from`` only.
    """

    now: int
    sweep_ms: int
    ttl_ms: int
    heard_from: int
    sent_from: int


def verdict(journey: Journey, rules: Rules, utc: Callable[[int], str]) -> Verdict:
    """Return the outcome of the message and, if it was not delivered, the reason; ``utc`` formats a time."""
    to, copy = journey.name.to, journey.applied
    if copy is None:
        letter = next((letter for letter in reversed(journey.letters) if letter.app == MESSAGING), None)
        if letter is None:
            return Verdict("missing", "in the part of the log that was read it is only as redriven for history")
        return Verdict(
            "dead-lettered",
            f"messaging could not apply it: {letter.reason}; it is dead letter {letter.number},"
            f" and 'dead-letters redrive {letter.number}' brings it back once the cause is mended",
        )
    inbox, position = journey.inbox, copy.position
    if journey.acknowledged:
        device, at = min(journey.acknowledged.items(), key=lambda item: item[1])
        others = sorted(d for d, cursor in inbox.cursors.items() if cursor < position and d not in journey.acknowledged)
        rest = f"; not yet by {', '.join(others)}, for which it is kept" if others and inbox.stored else ""
        return Verdict("acknowledged", f"{to}'s device {device} acknowledged it at {utc(at)}{rest}")
    if inbox.gap is not None:
        return Verdict(
            "overflowed",
            f"{to}'s inbox was full: it is in history only; {to}'s devices are told that they missed"
            f" ({inbox.gap}, …] and can ask for that range",
        )
    if inbox.stored:
        if rules.now - copy.accepted_at > rules.ttl_ms:
            return Verdict("expired", f"it was in {to}'s inbox for too long and is in history only")
        return Verdict("pending", _why_pending(journey, copy, rules, utc))
    if inbox.top is None or inbox.top < position:
        following = journey.next_offsets.get(MESSAGING)
        if following is None or following <= position.offset:
            behind = f"its next is offset {following}" if following is not None else "it never ran on this partition"
            return Verdict(
                "in flight",
                f"messaging has not applied it: {behind}, the message is at offset {position.offset}"
                f" of partition {copy.partition}; does it run?",
            )
        if inbox.top is None and rules.now - copy.accepted_at > rules.ttl_ms:
            return Verdict("expired", f"{to}'s inbox expired, untouched for too long; it is in history only")
        return Verdict(
            "missing",
            f"messaging is past it, and it is not in {to}'s inbox, whose top is {inbox.top}: Redis lost it;"
            " 'faust -A chat_streams replay' brings it back",
        )
    past = sorted(device for device, cursor in inbox.cursors.items() if cursor >= position)
    if past:
        return Verdict(
            "acknowledged",
            f"{to}'s device {past[0]} has it: its cursor is past it, though no acknowledgement in the log is;"
            " the device said so when it connected",
        )
    if rules.now - copy.accepted_at > rules.ttl_ms:
        return Verdict("expired", f"it was in {to}'s inbox for too long and is in history only")
    return Verdict(
        "missing",
        f"it is no longer in {to}'s inbox, and no device of {to} that is known has acknowledged it;"
        " 'faust -A chat_streams audit' shows whether that is so for others",
    )


def _why_pending(journey: Journey, copy: Copy, rules: Rules, utc: Callable[[int], str]) -> str:
    to = journey.name.to
    waits = f"it waits in the inbox at position {copy.position}, {journey.inbox.before} before it"
    living = {
        key: c
        for key, c in journey.connections.items()
        if c.gone_at is None and rules.now - c.heard_at <= 2 * rules.sweep_ms
    }
    if not living:
        last = max((c.gone_at or c.heard_at for c in journey.connections.values()), default=None)
        since = f"since {utc(last)}" if last is not None else f"and had none since {utc(rules.heard_from)}, at least"
        sent = max(journey.sent.values(), default=None)
        was_sent = "" if sent is None else f"; it was sent at {utc(sent)}, and not acknowledged"
        return f"{to} has no connection {since}; {waits}{was_sent}"
    reached = {key: at for key, at in journey.sent.items() if key in living}
    if reached:
        key, at = max(reached.items(), key=lambda item: item[1])
        return (
            f"it was sent to {to}'s device {living[key].device} at {utc(at)}, and no device of {to} has acknowledged"
            f" it; {waits}"
        )
    devices = ", ".join(f"{c.device} since {utc(c.since)}" for c in living.values())
    unknown = (
        f" (what was sent before {utc(rules.sent_from)} is no longer known)"
        if rules.sent_from > copy.accepted_at
        else ""
    )
    return (
        f"{to} is connected ({devices}), but nothing was sent that holds it{unknown}; {waits}: it is not sent while"
        " too much is sent and not acknowledged"
    )


def journey_json(journey: Journey, found: Verdict, utc: Callable[[int], str]) -> dict[str, Any]:
    """Return a journey as JSON values; ``utc`` formats its times, durations are in ms."""
    hops, start, before = [], journey.first.accepted_at, journey.first.accepted_at
    for hop in journey.ordered():
        hops.append(
            {
                "at": utc(hop.at),
                "what": hop.what,
                "detail": hop.detail,
                "ms": hop.at - start,
                "step_ms": hop.at - before,
            }
        )
        before = hop.at
    applied, inbox = journey.applied, journey.inbox
    return {
        **journey.name._asdict(),
        "fate": found.fate,
        "verdict": found.text,
        "position": str(applied.position) if applied else None,
        "copies": [
            {
                "position": str(c.position),
                "partition": c.partition,
                "offset": c.position.offset,
                "accepted_at": utc(c.accepted_at),
                "logged_at": utc(c.logged_at),
                "redriven_for": sorted(c.redrive.apps) if c.redrive else None,
                "dropped": c is not applied,
            }
            for c in journey.copies
        ],
        "hops": hops,
        "inbox": {
            "stored": inbox.stored,
            "before": inbox.before,
            "top": str(inbox.top) if inbox.top else None,
            "floor": str(inbox.floor) if inbox.floor else None,
            "cursors": {device: str(cursor) for device, cursor in inbox.cursors.items()},
        },
        "in_history": journey.in_history,
        "acknowledged": {device: utc(at) for device, at in journey.acknowledged.items()},
        "dead_letters": [letter.number for letter in journey.letters],
        "next_offsets": journey.next_offsets,
    }
