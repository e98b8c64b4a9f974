"""What became of each accepted message, from the log, the acknowledgements in it and the inboxes: pure, no I/O.

Positions are held packed, ``entry << 32 | index``, one number each: there are many. What is held is per user and
device, never per message, but for the messages that are looked at (``Item``) and what ``Repeats`` says of itself.
"""

from __future__ import annotations

import enum
import mmap
from collections import Counter, OrderedDict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Any, Final, NamedTuple

from chat_streams.model.position import Position
from chat_streams.model.records import Acknowledge, Message, UserConnected

INDEX_BITS: Final = 32
FILTER_BITS: Final = 28
"""2^28 bits are 32 MiB: of 10 million messages on one partition, about 190,000 look repeated and are not."""
MOST_SUSPECTS: Final = 1_000_000
MOST_RECENT: Final = 500_000
MOST_FINDINGS: Final = 100
SURELY: Final = 0.9
"""Of a time after which something may be forgotten: what is younger must be there."""


def pack(position: Position) -> int:
    """A position as one number, in the same order."""
    return position.entry << INDEX_BITS | position.index


def unpack(packed: int) -> Position:
    """The position of a number."""
    return Position(packed >> INDEX_BITS, packed & ((1 << INDEX_BITS) - 1))


class Fate(enum.StrEnum):
    """What became of a message: exactly one of these."""

    ACKNOWLEDGED = "acknowledged"
    PENDING = "pending"
    EXPIRED = "expired"
    OVERFLOWED = "overflowed"
    RETRY = "retry"
    DEAD_LETTERED = "dead-lettered"
    IN_FLIGHT = "in flight"
    """Not applied yet."""


class Problem(NamedTuple):
    """A message is none of the fates, or, with ``twice``, more than one."""

    text: str
    twice: bool


class Finding(NamedTuple):
    """Something that is not as it must be; ``position``, ``sender`` and ``id`` are those of a message, if it is one."""

    partition: int
    user: str
    problem: str
    position: Position | None = None
    sender: str | None = None
    id: str | None = None

    def as_json(self) -> dict[str, Any]:
        """The same as JSON values."""
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
    """What the judgement goes by: the time in ms since the epoch, and settings of the services (``settings.py``)."""

    now: int
    inbox_ttl: int
    retry_window: int
    max_devices: int
    retention: int


# What the log says of the devices


class Claim:
    """What the log says of a device; positions are packed, 0 for none.

    ``acked`` is the highest it acknowledged; ``held`` the highest it surely had: that, or the cursor it connected with;
    ``shown`` the highest named for it at all, also by what was merely forwarded; ``seen`` when it last connected or
    acknowledged, in ms since the epoch.
    """

    __slots__ = ("acked", "held", "seen", "shown")

    def __init__(self) -> None:
        self.acked = self.held = self.shown = self.seen = 0


Claims = Mapping[str, Claim]
_NO_CLAIM: Final = Claim()


class Logged:
    """The devices of users as ``session_events`` and ``inbox_requests`` have them."""

    def __init__(self) -> None:
        self._users: dict[str, dict[str, Claim]] = {}

    def __iter__(self) -> Iterator[str]:
        return iter(self._users)

    def of(self, user: str) -> Claims:
        """The devices of a user."""
        return self._users.get(user, {})

    def connected(self, event: UserConnected, at: int) -> None:
        """Note a connection, logged ``at`` (ms since the epoch)."""
        claim, after = self._claim(event.user, event.device), pack(event.after)
        claim.shown = max(claim.shown, after)
        # Announced again, it names what was forwarded since: that is no acknowledgement.
        if event.drain:
            claim.held = max(claim.held, after)
            claim.seen = max(claim.seen, at)

    def acknowledged(self, ack: Acknowledge, at: int) -> None:
        """Note an acknowledgement, likewise."""
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


# What the log says of messages sent again


class Repeats:
    """Finds the messages that an earlier one of the same recipient, sender and id preceded; in two passes.

    ``mark`` all messages, then ask ``age`` of all in the same order. The first pass holds 2^``bits`` bits, and a hash
    of each message whose bit was set already: of those that are repeated, and of n^2 / 2^(bits + 1) others. Only for
    them the second pass holds when they came last, exactly. Past ``MOST_SUSPECTS`` all messages are suspects. Of
    suspects the latest ``MOST_RECENT`` are held: a message sent again behind more than those is not recognized.
    """

    def __init__(
        self, bits: int = FILTER_BITS, most_suspects: int = MOST_SUSPECTS, most_recent: int = MOST_RECENT
    ) -> None:
        # Unlike a bytearray's, its pages take memory only once they are written.
        self._bits: mmap.mmap | None = mmap.mmap(-1, 1 << (bits - 3))
        self._mask = (1 << bits) - 1
        self._suspects: set[int] | None = set()
        self._most_suspects = most_suspects
        self._most_recent = most_recent
        self._recent: OrderedDict[bytes, int] = OrderedDict()

    def mark(self, message: Message) -> None:
        """First pass: note a message."""
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

    def age(self, message: Message) -> int | None:
        """Second pass: ms from the last one of the same name to this message, either way; ``None`` if there is none."""
        if self._bits is not None:
            self._bits.close()
            self._bits = None
        suspects = self._suspects
        if suspects is not None and hash((message.to, message.sender, message.id)) not in suspects:
            return None
        name = blake2b(f"{message.to}\0{message.sender}\0{message.id}".encode(), digest_size=16).digest()
        before = self._recent.pop(name, None)
        self._recent[name] = message.at
        if len(self._recent) > self._most_recent:
            self._recent.popitem(last=False)
        return None if before is None else abs(message.at - before)


# What Redis says of the inboxes


class Head:
    """The state of an inbox at one moment; positions packed, 0 for none.

    ``first`` is the lowest position it has something to say of, ``None`` for an empty one; ``last`` the highest.
    ``devices`` are the cursors of the living ones, ``seen`` when each was last seen (s since the epoch).
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
        """Whether nothing at or below a position can be in it, now or later: entries come above the top only."""
        return until <= self.top if self.first is None else until < self.first


class View(NamedTuple):
    """An inbox and what is in a part of it: accepted when (s since the epoch), and gaps ``(after, until]``."""

    head: Head
    messages: dict[int, int]
    gaps: list[tuple[int, int]]


class Item(NamedTuple):
    """A message of the log: packed position, the message without its JSON, ``age`` as ``Repeats`` has it."""

    position: int
    message: Message
    age: int | None
    dead: bool


def judge(item: Item, view: View, claims: Claims, rules: Rules, acks_applied: bool) -> Fate | Problem:
    """What became of a message that was applied.

    ``acks_applied`` says that the acknowledgements in ``claims`` had their effect before ``view``.
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
    if item.message.at < rules.now - rules.inbox_ttl * 1000:
        return Fate.EXPIRED
    # Windows have fixed limits, and what is in this one or the one before is dropped.
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
        # The inbox is gone. What the devices that count would have is what they had.
        oldest = rules.now - rules.inbox_ttl * 1000
        living = [name for name, claim in claims.items() if claim.seen >= oldest] or claims
    if claims and position <= min((claims.get(name, _NO_CLAIM).held for name in living), default=0):
        return True
    # Below the floor: the devices which counted then may be forgotten by now.
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
    """What is wrong with the state of an inbox; ``log_end`` is a position (packed) that the log had not reached.

    What is below ``log_start`` is of an earlier generation, and the log knows nothing of it.
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


# The whole


@dataclass
class Report:
    """The outcome: how many messages had which fate, and what is not as it must be."""

    fates: Counter[Fate] = field(default_factory=Counter)
    none: int = 0
    twice: int = 0
    others: int = 0
    """Findings that are no message of the log: strange entries, cursors, records."""
    findings: list[Finding] = field(default_factory=list)
    acks_in_flight: int = 0
    """Records of ``inbox_requests`` that were there at the start and are not applied."""
    history_checked: int = 0
    history_missing: int = 0
    history_behind: int = 0
    """Messages that history has not reached yet."""

    @property
    def messages(self) -> int:
        """All messages of the log that were judged."""
        return self.fates.total() + self.none + self.twice

    @property
    def clean(self) -> bool:
        """Whether each message is exactly one, and applied, and nothing else is wrong."""
        wrong = self.none + self.twice + self.others + self.history_missing
        return not (wrong + self.fates[Fate.IN_FLIGHT] + self.acks_in_flight)

    @property
    def left_out(self) -> int:
        """Findings past the limit."""
        return self.none + self.twice + self.others + self.history_missing - len(self.findings)

    def wrong(self, partition: int, item: Item, problem: Problem) -> None:
        """Note a message that is none or two."""
        if problem.twice:
            self.twice += 1
        else:
            self.none += 1
        self._add(_finding(partition, item, problem.text))

    def missing(self, partition: int, item: Item) -> None:
        """Note a message that history does not have."""
        self.history_missing += 1
        self._add(_finding(partition, item, "is not in history"))

    def other(self, finding: Finding) -> None:
        """Note anything else."""
        self.others += 1
        self._add(finding)

    def _add(self, finding: Finding) -> None:
        if len(self.findings) < MOST_FINDINGS:
            self.findings.append(finding)


def _finding(partition: int, item: Item, problem: str) -> Finding:
    message = item.message
    return Finding(partition, message.to, problem, unpack(item.position), message.sender, message.id)


class Look(NamedTuple):
    """A part ``(after, until]`` of an inbox is to be looked at; the log has ``messages`` in it. Packed."""

    user: str
    after: int
    until: int
    messages: int


class Partition:
    """The second pass over one partition: its messages in order, some at a time.

    ``start`` is the packed position below the log's first message; what is in an inbox below it is not judged.
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
        """The recipients so far."""
        return self._judged_to.keys()

    def judged_to(self, user: str) -> int:
        """The position up to which a user's inbox was compared with the log."""
        return self._judged_to.get(user, self._start)

    def looks(self, items: Sequence[Item]) -> list[Look]:
        """Which inboxes must be looked at to judge the next items."""
        counts = Counter(item.message.to for item in items)
        last = {item.message.to: item.position for item in items}
        return [
            Look(user, self.judged_to(user), until, counts[user])
            for user, until in last.items()
            if (head := self._heads.get(user)) is None or not head.is_empty_up_to(until)
        ]

    def judge(self, items: Sequence[Item], views: Mapping[str, View], rules: Rules, acks_applied: bool) -> list[Item]:
        """Judge the next items, with the views that ``looks`` wanted; returns those that must be looked at again."""
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
        """Note the entries of a view up to ``until`` which are none of the messages that the log has there."""
        for position in [*view.messages, *(end for _, end in view.gaps)]:
            if self.judged_to(user) < position <= until and (user, position) not in known:
                text = "is in the inbox and not in the log"
                self._report.other(Finding(self.number, user, text, unpack(position)))
