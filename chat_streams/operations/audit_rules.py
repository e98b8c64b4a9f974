"""The rules of the audit: the fate of each accepted message (acknowledged, pending, expired, overflowed, …). Pure.

Positions are packed into one integer each, ``entry << 32 | index``, because there are many. Memory is used per user and
device, not per message, except for the messages that are being judged (``Item``) and in ``Repeats``, within its limits.
"""

from __future__ import annotations

import enum
import mmap
from collections import Counter, OrderedDict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Any, Final, NamedTuple

from chat_streams.model.losses import Losses
from chat_streams.model.position import Position
from chat_streams.model.records import Acknowledge, Message, UserConnected

INDEX_BITS: Final = 32
FILTER_BITS: Final = 28
"""The filter takes 2^28 bits, 32 MiB; of 10 million messages on a partition about 190,000 look repeated and are not."""
MOST_SUSPECTS: Final = 1_000_000
MOST_RECENT: Final = 500_000
MOST_FINDINGS: Final = 100
SURELY: Final = 0.9
"""The share of a retention time within which nothing may have been removed yet: anything younger must be there."""


def pack(position: Position) -> int:
    """Return a position as one integer; the order is the same."""
    return position.entry << INDEX_BITS | position.index


def unpack(packed: int) -> Position:
    """Return the position that an integer stands for."""
    return Position(packed >> INDEX_BITS, packed & ((1 << INDEX_BITS) - 1))


class Fate(enum.StrEnum):
    """The outcome of a message; each message has exactly one."""

    ACKNOWLEDGED = "acknowledged"
    PENDING = "pending"
    EXPIRED = "expired"
    OVERFLOWED = "overflowed"
    RETRY = "retry"
    DEAD_LETTERED = "dead-lettered"
    IN_FLIGHT = "in flight"
    """Messaging has not applied it yet."""


class Problem(NamedTuple):
    """A message that has no fate or, with ``twice``, more than one; ``text`` says how."""

    text: str
    twice: bool


class Finding(NamedTuple):
    """Something that is wrong; ``position``, ``sender`` and ``id`` are the message's, if it concerns one."""

    partition: int
    user: str
    problem: str
    position: Position | None = None
    sender: str | None = None
    id: str | None = None

    def as_json(self) -> dict[str, Any]:
        """Return the finding as JSON values."""
        position = self.position
        return {
            "partition": self.partition,
            "offset": None if position is None else position.offset,
            "index": None if position is None else position.index,
            "position": None if position is None else str(position),
            "user": self.user,
            "sender": self.sender,
            "id": self.id,
            "problem": self.problem,
        }


class Rules(NamedTuple):
    """The time by Redis in ms since the epoch, and the settings of the services that a fate depends on (times in s)."""

    now: int
    inbox_ttl: int
    retry_window: int
    max_devices: int
    retention: int


# Devices, by the log


class Claim:
    """The state of a device by the log; positions are packed, 0 for none.

    ``acked`` is the highest position it acknowledged; ``held`` the highest it certainly had, by acknowledgement or by
    the cursor it connected with; ``shown`` the highest that any record names for it, including positions that were
    forwarded only; ``seen`` is when it last connected or acknowledged, in ms since the epoch.
    """

    __slots__ = ("acked", "held", "seen", "shown")

    def __init__(self) -> None:
        self.acked = self.held = self.shown = self.seen = 0


Claims = Mapping[str, Claim]
_NO_CLAIM: Final = Claim()


class Logged:
    """The devices of all users, collected from ``session_events`` and ``inbox_requests``."""

    def __init__(self) -> None:
        self._users: dict[str, dict[str, Claim]] = {}

    def __iter__(self) -> Iterator[str]:
        return iter(self._users)

    def of(self, user: str) -> Claims:
        """Return the devices of a user, by name."""
        return self._users.get(user, {})

    def connected(self, event: UserConnected, at: int) -> None:
        """Record a connection that was logged ``at`` (ms since the epoch)."""
        claim, after = self._claim(event.user, event.device), pack(event.after)
        claim.shown = max(claim.shown, after)
        # A repeated announcement (without ``drain``) names what was forwarded since: that is no acknowledgement.
        if event.drain:
            claim.held = max(claim.held, after)
            claim.seen = max(claim.seen, at)

    def acknowledged(self, ack: Acknowledge, at: int) -> None:
        """Record an acknowledgement that was logged ``at`` (ms since the epoch)."""
        claim, position = self._claim(ack.user, ack.device), pack(ack.position)
        claim.acked = max(claim.acked, position)
        claim.held = max(claim.held, position)
        claim.shown = max(claim.shown, position)
        claim.seen = max(claim.seen, at)

    def _claim(self, user: str, device: str) -> Claim:
        devices = self._users.get(user)
        if devices is None:
            devices = self._users[user] = {}
        claim = devices.get(device)
        if claim is None:
            claim = devices[device] = Claim()
        return claim


# Messages sent again, by the log


class Repeats:
    """A filter that finds messages preceded by one of the same recipient, sender and id; it takes two passes.

    Call ``mark`` for all messages, then ``age`` for all in the same order. The first pass keeps 2^``bits`` bits, and a
    hash of each message whose bit was set already, a suspect: these are the repeated messages, and n^2 / 2^(bits + 1)
    others. The second pass keeps the time of the latest message of a name, exactly, but for suspects only. Once there
    are more than ``MOST_SUSPECTS``, all messages are suspects. The second pass keeps the latest ``MOST_RECENT``
    suspects: a message sent again after more suspects than that is not recognized.
    """

    def __init__(
        self, bits: int = FILTER_BITS, most_suspects: int = MOST_SUSPECTS, most_recent: int = MOST_RECENT
    ) -> None:
        # Unlike the pages of a bytearray, those of a mapping take memory only once they are written.
        self._bits: mmap.mmap | None = mmap.mmap(-1, 1 << (bits - 3))
        self._mask = (1 << bits) - 1
        self._suspects: set[int] | None = set()
        self._most_suspects = most_suspects
        self._most_recent = most_recent
        self._recent: OrderedDict[bytes, int] = OrderedDict()

    def mark(self, message: Message) -> None:
        """Record a message in the first pass."""
        suspects, bits = self._suspects, self._bits
        if suspects is None or bits is None:
            return
        hashed = hash((message.to, message.sender, message.id))
        bit = hashed & self._mask
        byte, flag = bit >> 3, 1 << (bit & 7)
        if not bits[byte] & flag:
            bits[byte] |= flag
        elif len(suspects) < self._most_suspects:
            suspects.add(hashed)
        else:
            self._suspects = None

    def age(self, message: Message, at: int) -> int | None:
        """Return the ms between this message, of the time ``at``, and the latest of the same name before it.

        Returns ``None`` if there is none. To be called in the second pass. It is never negative, whichever of the two
        has the earlier time.
        """
        if self._bits is not None:
            self._bits.close()
            self._bits = None
        suspects = self._suspects
        if suspects is not None and hash((message.to, message.sender, message.id)) not in suspects:
            return None
        name = blake2b(f"{message.to}\0{message.sender}\0{message.id}".encode(), digest_size=16).digest()
        before = self._recent.pop(name, None)
        self._recent[name] = at
        if len(self._recent) > self._most_recent:
            self._recent.popitem(last=False)
        return None if before is None else abs(at - before)


# Inboxes, by Redis


class Head:
    """The state of an inbox at one moment; positions are packed, 0 for none.

    ``first`` is the lowest position that a message or a gap in it covers, ``None`` for an empty inbox; ``last`` is the
    highest. ``devices`` has the cursor of each device that it waits for, ``seen`` when each was last seen (s since the
    epoch).
    """

    __slots__ = ("devices", "first", "floor", "last", "seen", "top")

    def __init__(
        self, top: int, floor: int, first: int | None, last: int, devices: dict[str, int], seen: dict[str, int]
    ) -> None:
        self.top = top
        self.floor = floor
        self.first = first
        self.last = last
        self.devices = devices
        self.seen = seen

    def is_empty_up_to(self, until: int) -> bool:
        """Return whether nothing at or below ``until`` is in it or can still come: entries are added above the top."""
        return until <= self.top if self.first is None else until < self.first


class View(NamedTuple):
    """An inbox with its entries in a range: each message's append time (s), and gaps ``(after, until]``."""

    head: Head
    messages: dict[int, int]
    gaps: list[tuple[int, int]]


class Item(NamedTuple):
    """A message of the log: its packed position, the message without its JSON, and its ``age`` by ``Repeats.age``.

    ``at`` is when its record was appended (ms since the epoch). ``dead`` is true if messaging could not apply it.
    ``first`` is the packed position of the record before it was redriven, 0 if it was not.
    """

    position: int
    at: int
    message: Message
    age: int | None
    dead: bool
    first: int = 0


def judge(item: Item, view: View, claims: Claims, rules: Rules, acks_applied: bool) -> Fate | Problem:
    """Return the fate of a message that messaging has read, or what is wrong with it.

    ``acks_applied`` states that the acknowledgements in ``claims`` had been applied when ``view`` was read.
    """
    position, at = item.position, view.messages.get(item.position)
    window = rules.retry_window * 1000
    again = item.age is not None and item.age <= window
    if at is not None:
        return _judge_stored(item, at, again, view.head, claims, rules, acks_applied)
    if item.dead:
        return Fate.DEAD_LETTERED
    if again:
        return Fate.RETRY
    if any(after < position <= until for after, until in view.gaps):
        return Fate.OVERFLOWED
    if _acknowledged(position, view.head, claims, rules):
        return Fate.ACKNOWLEDGED
    if item.at < rules.now - rules.inbox_ttl * 1000:
        return Fate.EXPIRED
    # Retry windows begin at fixed times, and a repeat of a message in this window or one beside it is dropped.
    if item.age is not None and item.age <= 2 * window:
        return Fate.RETRY
    return Problem(f"is nowhere: {_evidence(position, view.head, claims)}", twice=False)


def _judge_stored(
    item: Item, at: int, again: bool, head: Head, claims: Claims, rules: Rules, acks_applied: bool
) -> Fate | Problem:
    position = item.position
    if item.dead:
        return Problem("is pending and dead-lettered", twice=True)
    if again:
        return Problem("is pending and a retry of an earlier message", twice=True)
    if at < rules.now // 1000 - rules.inbox_ttl:
        return Fate.EXPIRED
    if position <= head.floor:
        return Problem(f"is pending at or below the floor {unpack(head.floor)}: it is not read any more", twice=True)
    if (
        acks_applied
        and claims
        and head.devices.keys() <= claims.keys()
        and all(claim.acked >= position for claim in claims.values())
    ):
        return Problem("is pending and acknowledged by all devices", twice=True)
    return Fate.PENDING


def _acknowledged(position: int, head: Head, claims: Claims, rules: Rules) -> bool:
    living: Iterable[str] = head.devices
    if not head.devices:
        # The inbox is gone: go by the devices that it would wait for if it were there.
        oldest = rules.now - rules.inbox_ttl * 1000
        living = [name for name, claim in claims.items() if claim.seen >= oldest] or claims
    if claims and position <= min((claims.get(name, _NO_CLAIM).held for name in living), default=0):
        return True
    # Below the floor, one device is enough: the others that it waited for then may be forgotten by now.
    return position <= head.floor and any(claim.held >= position for claim in claims.values())


def _evidence(position: int, head: Head, claims: Claims) -> str:
    if position > head.top:
        return f"not in the inbox, whose top is {unpack(head.top)}"
    lacking = sorted(name for name in head.devices if claims.get(name, _NO_CLAIM).held < position)
    if lacking:
        names = ", ".join(lacking[:3]) + (" and others" if len(lacking) > 3 else "")
        return f"gone from the inbox, not acknowledged by {names}"
    return "gone from the inbox, not acknowledged by any device"


def check_head(head: Head, claims: Claims, rules: Rules, log_start: int, log_end: int) -> list[str]:
    """Return what is wrong with the state of an inbox, a sentence for each.

    ``log_start`` and ``log_end`` are packed positions: those up to ``log_start`` are gone from the log, or of earlier
    generations, and so may be what shows where they come from; those from ``log_end`` on are beyond the end of the log.
    """
    problems = []
    if max(head.top, head.last) >= log_end:
        highest = unpack(max(head.top, head.last))
        problems.append(f"the inbox is at {highest}, above the end of the log: it takes nothing below that any more")
    in_log = rules.now // 1000 - int(SURELY * rules.retention)
    for name, cursor in head.devices.items():
        shown = claims.get(name, _NO_CLAIM).shown
        if cursor > max(shown, head.floor, log_start) and head.seen[name] >= in_log:
            text = unpack(shown) if shown else "nothing"
            problems.append(f"the cursor {unpack(cursor)} of device {name} is above all the log shows of it, {text}")
    acked = max((claim.shown for claim in claims.values()), default=0)
    if head.floor > max(acked, log_start) and head.devices and min(head.seen.values()) >= in_log:
        problems.append(f"the floor {unpack(head.floor)} is above all that any device acknowledged, {unpack(acked)}")
    if len(head.devices) < rules.max_devices:
        living = rules.now - int(SURELY * rules.inbox_ttl * 1000)
        problems += [
            f"device {name} is in the log and not in the inbox any more, which no longer waits for it"
            for name, claim in claims.items()
            if name not in head.devices and claim.seen >= living
        ]
    return problems


# The audit as a whole


@dataclass
class Report:
    """The result of an audit: the number of messages of each fate, and what is wrong."""

    at: int = 0
    """The log's time at which it began, about, in ms since the epoch."""
    fates: Counter[Fate] = field(default_factory=Counter)
    none: int = 0
    """The number of messages without a fate."""
    twice: int = 0
    """The number of messages with more than one fate."""
    others: int = 0
    """The number of findings that concern no message of the log, but an unknown entry, a cursor or a record."""
    findings: list[Finding] = field(default_factory=list)
    acks_in_flight: int = 0
    """The number of records of ``inbox_requests`` that were there at the start and were not applied in time."""
    history_checked: int = 0
    history_missing: int = 0
    history_behind: int = 0
    """The number of messages that history has not reached yet."""
    losses: Losses = field(default_factory=lambda: Losses([], []))
    """The records that were gone from the log before a service had applied them."""

    @property
    def messages(self) -> int:
        """The number of messages of the log that were judged."""
        return self.fates.total() + self.none + self.twice

    @property
    def clean(self) -> bool:
        """True if each message was applied and has exactly one fate, and nothing else is wrong.

        A loss that an operator has acknowledged is not wrong any more.
        """
        wrong = self.none + self.twice + self.others + self.history_missing + len(self.losses.open)
        return not (wrong + self.fates[Fate.IN_FLIGHT] + self.acks_in_flight)

    @property
    def left_out(self) -> int:
        """The number of findings that are not in ``findings``, which is limited to ``MOST_FINDINGS``."""
        return self.none + self.twice + self.others + self.history_missing - len(self.findings)

    def wrong(self, partition: int, item: Item, problem: Problem) -> None:
        """Report a message that has no fate, or more than one."""
        if problem.twice:
            self.twice += 1
        else:
            self.none += 1
        self._add(_finding(partition, item, problem.text))

    def missing(self, partition: int, item: Item) -> None:
        """Report a message that history does not have."""
        self.history_missing += 1
        self._add(_finding(partition, item, "is not in history"))

    def other(self, finding: Finding) -> None:
        """Report anything else."""
        self.others += 1
        self._add(finding)

    def _add(self, finding: Finding) -> None:
        if len(self.findings) < MOST_FINDINGS:
            self.findings.append(finding)


def _finding(partition: int, item: Item, problem: str) -> Finding:
    message = item.message
    return Finding(partition, message.to, problem, unpack(item.position), message.sender, message.id)


class Look(NamedTuple):
    """A request to read the range ``(after, until]`` (packed) of an inbox; the log has ``messages`` messages in it."""

    user: str
    after: int
    until: int
    messages: int


class Partition:
    """The second pass over one partition, which takes its messages in order, a chunk at a time.

    ``start`` is the packed position just below the log's first message; entries of inboxes up to it are not judged.
    """

    def __init__(self, number: int, start: int, logged: Logged, report: Report) -> None:
        self.number = number
        self.logged = logged
        self._start = start
        self._report = report
        self._heads: dict[str, Head] = {}
        self._judged_to: dict[str, int] = {}

    @property
    def users(self) -> Iterable[str]:
        """The recipients of the messages so far."""
        return self._judged_to.keys()

    def judged_to(self, user: str) -> int:
        """Return the packed position up to which a user's inbox was compared with the log."""
        return self._judged_to.get(user, self._start)

    def looks(self, items: Sequence[Item]) -> list[Look]:
        """Return the ranges of inboxes that must be read to judge the next items."""
        counts = Counter(item.message.to for item in items)
        last = {item.message.to: item.position for item in items}
        return [
            Look(user, self.judged_to(user), until, counts[user])
            for user, until in last.items()
            if (head := self._heads.get(user)) is None or not head.is_empty_up_to(until)
        ]

    def judge(self, items: Sequence[Item], views: Mapping[str, View], rules: Rules, acks_applied: bool) -> list[Item]:
        """Judge the next items by the views that ``looks`` asked for; returns those that seem to have a problem."""
        suspicious = []
        for user, view in views.items():
            self._heads[user] = view.head
        for item in items:
            user = item.message.to
            view = views.get(user) or View(self._heads[user], {}, [])
            fate = judge(item, view, self.logged.of(user), rules, acks_applied)
            if isinstance(fate, Fate):
                self._report.fates[fate] += 1
            else:
                suspicious.append(item)
        known = {(item.message.to, item.position) for item in items}
        last = {item.message.to: item.position for item in items}
        for user, until in last.items():
            if user in views:
                self.strangers(user, views[user], until, known)
            self._judged_to[user] = until
        return suspicious

    def strangers(self, user: str, view: View, until: int, known: set[tuple[str, int]]) -> None:
        """Report the entries of a view, up to ``until``, that are not among the ``known`` messages of the log."""
        for position in [*view.messages, *(end for _, end in view.gaps)]:
            if self.judged_to(user) < position <= until and (user, position) not in known:
                text = "is in the inbox and not in the log"
                self._report.other(Finding(self.number, user, text, unpack(position)))
