"""One trial: a crowd sends, a fault happens, and what was confirmed is compared with what arrived."""

from __future__ import annotations

import abc
import asyncio
import itertools
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

from chat_streams.kafka.names import partition_of
from clients.python.client import Client
from clients.python.errors import ConnectionClosed, RequestRefused
from docker.local.layout import StackError
from docker.local.part import Running
from docker.local.parts import Service
from docker.local.probes import WITHIN_S, Received, eventually, user
from docker.local.temporary_stack import Stack
from tests.faults.crowd import Crowd, Phase
from tests.integration.commands import call

HEALED_S = 10.0
"""The largest number of seconds from the part's return until messages pass again on all partitions."""
WARM_MESSAGES = 500
STORED_MESSAGES = 2_000
AFTER_MESSAGES = 500
PROBE_S = 60.0
PROBE_PAUSE_S = 0.2
LATE_S = 1.0
QUIET_S = 4.0
"""Seconds without a late message that count as healed: a returning worker gets its partitions some seconds later."""
DRAIN_S = 60.0
TRIAL_S = 420.0
AUDIT_S = 120.0
LOG_LINES = 5

Stage = Callable[[str], None]


class Limits(NamedTuple):
    """Limits in seconds for the steps of a trial."""

    late: float = LATE_S
    """A message that takes longer shows that the stack has not healed yet."""
    quiet: float = QUIET_S
    probe: float = PROBE_S
    drain: float = DRAIN_S
    confirm: float = WITHIN_S
    whole: float = TRIAL_S


PROMISED = Limits()


@dataclass
class Result:
    """The result of a trial. Times are in seconds, and None where it did not get that far."""

    cell: str
    seed: int
    victim: str = ""
    confirmed: int = 0
    sent_again: int = 0
    lost: int = 0
    swapped: int = 0
    repeated: int = 0
    missed: int = 0
    """Messages that a fault removed and that a device was told it missed, for each device."""
    audit: str = "-"
    away_s: float | None = None
    """From the beginning of the fault until the part was back: ready, resumed or reachable."""
    healed_s: float | None = None
    """From then until messages passed on all partitions, none of them later than a second."""
    seconds: float = 0.0
    slow: list[str] = field(default_factory=list)
    """Messages that passed late, where the stack did not heal within ``HEALED_S``."""
    problems: list[str] = field(default_factory=list)
    restarted: list[str] = field(default_factory=list)
    """Parts that ended by themselves, and were started again."""
    commit: str = ""
    """The version of the code, as ``report.code_version`` names it."""
    setting: str = ""
    """Options of the run that the result depends on."""

    @property
    def kept(self) -> bool:
        """True when no message was lost, swapped or repeated, nothing else went wrong, and the stack healed."""
        wrong = self.lost or self.swapped or self.repeated or self.problems or self.restarted
        return not wrong and self.audit == "clean" and self.healed_s is not None

    @property
    def ok(self) -> bool:
        """True when the promise was kept and the stack healed in time."""
        return self.kept and self.healed_s is not None and self.healed_s <= HEALED_S

    def is_ok_for(self, commit: str, setting: str) -> bool:
        """Return whether it was OK with this version of the code and these options."""
        return self.ok and bool(commit) and (self.commit, self.setting) == (commit, setting)

    def row(self) -> list[str]:
        """Return the cells of a table row."""
        counts = (self.confirmed, self.lost, self.swapped, self.repeated, self.missed)
        times = ("-" if s is None else f"{s:.1f}" for s in (self.away_s, self.healed_s))
        verdict = "OK" if self.ok else "**FAIL**"
        if self.restarted:
            verdict += f", {len(self.restarted)} ended by themselves"
        return [self.cell, str(self.seed), *(f"{n:,}" for n in counts), self.audit, *times, verdict]


class Fault(abc.ABC):
    """Something that happens to a stack while a crowd sends."""

    victim: str
    """The part it happens to, as the report names it."""
    loses_records = False
    """True where records are gone before they are applied: the audit has to count them until that is acknowledged."""

    def __init__(self, stack: Stack) -> None:
        self.stack = stack
        self.away: set[str] = set()
        """The parts that the supervisor must not start meanwhile."""

    @abc.abstractmethod
    async def happen(self, crowd: Crowd) -> None:
        """Cause the fault; returns when the part is back."""

    async def end(self) -> None:
        """Undo what lasts until the end of the trial, if anything does."""
        return

    async def kill(self, name: str) -> None:
        """Kill a part and start it again at once, as a supervisor does."""
        running = self.stack.running[name]
        self.away.add(name)
        running.kill()
        await self.stack.start(running.part)
        self.away.discard(name)

    async def restart(self, name: str) -> None:
        """Stop a part in order (SIGTERM) and start it again; raises ``AssertionError`` where it had to be killed."""
        running = self.stack.running[name]
        self.away.add(name)
        await asyncio.to_thread(running.stop)
        await self.stack.start(running.part)
        self.away.discard(name)
        code = running.process.returncode
        assert code in (0, -signal.SIGTERM), f"{name} ended with {code} after SIGTERM"

    async def pause(self, name: str, seconds: float) -> None:
        """Pause a part for some seconds."""
        running = self.stack.running[name]
        running.pause()
        try:
            await asyncio.sleep(seconds)
        finally:
            running.resume()


async def _supervise(stack: Stack, away: set[str], restarted: list[str]) -> None:
    """Restart parts that end by themselves, as a supervisor does."""
    while True:
        for name, running in list(stack.running.items()):
            if name not in away and not running.alive:
                restarted.append(f"{name} ended with {running.process.returncode}: {_last_words(running)}")
                await stack.start(running.part)
        await asyncio.sleep(0.2)


def _last_words(running: Running) -> str:
    return " | ".join(line.strip() for line in running.part.last_lines().splitlines()[-LOG_LINES:])


class Probe:
    """Two new users for each partition, who exchange one message after the other."""

    def __init__(self, stack: Stack, with_history: bool, limits: Limits) -> None:
        self._stack = stack
        self._limits = limits
        self._with_history = with_history
        self._passed: set[str] = set()
        self._waiting: dict[str, float] = {}
        """The time since which a message is under way, by recipient."""
        self.slow: list[tuple[float, str, float]] = []
        """The first message to each recipient and each late one: time of arrival, recipient, seconds it took."""
        self._healed = 0.0
        """The time at which the first message of the last pair arrived, or the last late one."""

    async def healed(self) -> float:
        """Return the time (``time.monotonic``) from which all went well, once it has for a while.

        Raises ``TimeoutError``.
        """
        partitions = self._stack.settings.partitions
        recipients: dict[int, str] = {}
        while len(recipients) < partitions:
            bob = user("probe")
            recipients.setdefault(partition_of(bob, partitions), bob)
        urls = itertools.cycle(itertools.product(self._stack.urls, self._stack.urls))
        async with asyncio.timeout(self._limits.probe):
            # A client that is refused backs off for up to 10 s, which is not the time that the server takes.
            await eventually(partial(_all_ready, self._stack, "gateway"), "every gateway is ready", self._limits.probe)
            pairs = [asyncio.create_task(self._pair(bob, *next(urls))) for bob in recipients.values()]
            try:
                while not self._quiet(partitions):
                    await asyncio.sleep(0.05)
                    for pair in pairs:
                        if pair.done():
                            pair.result()
            finally:
                for pair in pairs:
                    pair.cancel()
                await asyncio.gather(*pairs, return_exceptions=True)
        return self._healed

    def _quiet(self, partitions: int) -> bool:
        now = time.monotonic()
        late = any(now - since > self._limits.late for since in self._waiting.values())
        return len(self._passed) == partitions and not late and now - self._healed > self._limits.quiet

    async def _pair(self, bob: str, near: str, far: str) -> None:
        stack = self._stack
        alice = user("probe-sender")
        received = Received()
        while True:
            try:
                async with (
                    Client(far, stack.token(bob), "phone", on_messages=received, timeout_s=self._limits.probe),
                    Client(near, stack.token(alice), "phone", timeout_s=self._limits.probe) as client,
                ):
                    for count in itertools.count(1):
                        begin = self._waiting[bob] = time.monotonic()
                        await client.send(bob, count, id=f"probe-{count}")
                        await received.wait(count)
                        while self._with_history and bob not in self._passed and not await _in_history(client, bob):
                            await asyncio.sleep(0.05)
                        del self._waiting[bob]
                        now = time.monotonic()
                        if bob not in self._passed or now - begin > self._limits.late:
                            self._healed = now
                            self.slow.append((now, bob, now - begin))
                        self._passed.add(bob)
                        await asyncio.sleep(PROBE_PAUSE_S)
            except ConnectionClosed as error:
                if error.code != "unreachable":
                    raise
                await asyncio.sleep(0.05)


async def _in_history(client: Client, bob: str) -> bool:
    try:
        return bool((await client.history(bob)).messages)
    except RequestRefused as error:
        if not error.retry:
            raise
        return False


async def audit(stack: Stack, loses_records: bool = False) -> tuple[str, list[str]]:
    """Run the audit command over everything in the stack; returns one word and the findings.

    With ``loses_records``, it has to find records that are gone, and nothing else, and to be clean once that is
    acknowledged.
    """
    done = await call(stack, ["audit", "--json"], within_s=AUDIT_S)
    if loses_records and done.code in (0, 1):
        if found := _wrong(done.json) or not done.json["retention"]["lost_records"]:
            return "unclean", [f"audit: {found}, first {done.json['findings'][:2]}; {done.json['retention']}"]
        done = await call(stack, ["audit", "--json", "--acknowledge-loss"], within_s=AUDIT_S)
    if done.code == 0:
        return "clean", []
    if done.code != 1:
        return "error", [f"audit ended with {done.code}: {done.err[-1000:]}"]
    report = done.json
    return "unclean", [f"audit: {_wrong(report)}, first {report['findings'][:2]}; {report['retention']}"]


def _wrong(report: dict[str, Any]) -> dict[str, int]:
    """Return what an audit has found, but for records that are gone."""
    names = ("none", "two", "other_findings", "in_flight", "acknowledgements_in_flight")
    counts = {name: report[name] for name in names if report[name]}
    if report["history"]["missing"]:
        counts["missing in history"] = report["history"]["missing"]
    return counts


class Trial(NamedTuple):
    """A fault and the crowd around it; a name and a seed repeat the crowd."""

    name: str
    seed: int
    phase: Phase
    fault: Fault
    with_history: bool = False
    """Messages have passed only when they are read back from history, too."""
    outage_s: float = 0.0
    """Seconds for which the fault holds up all messages, by which the limits are longer."""


async def run_trial(stack: Stack, trial: Trial, stage: Stage, limits: Limits = PROMISED) -> Result:
    """Run one trial on a healthy stack; no failure of the stack raises an exception."""
    result = Result(trial.name, trial.seed, trial.fault.victim)
    limits = limits._replace(confirm=limits.confirm + trial.outage_s, whole=limits.whole + trial.outage_s)
    started = time.monotonic()
    supervisor: asyncio.Task[None] | None = None
    crowd = Crowd(stack, stack.urls, trial.phase, f"{trial.seed} {trial.name}", limits.confirm)
    try:
        stack.check()
        async with asyncio.timeout(limits.whole):
            supervisor = asyncio.create_task(_supervise(stack, trial.fault.away, result.restarted))
            try:
                await _measure(stack, trial, crowd, result, stage, limits)
            finally:
                await trial.fault.end()
    except (AssertionError, StackError, TimeoutError, ConnectionClosed, RequestRefused) as error:
        result.problems.append(f"{type(error).__name__}: {error}"[:1000])
    finally:
        await crowd.cancel()
        if supervisor is not None:
            if supervisor.done() and (died := supervisor.exception()) is not None:
                result.problems.append(f"not started again: {died}"[:1000])
            supervisor.cancel()
    result.seconds = time.monotonic() - started
    return result


async def _all_ready(stack: Stack, prefix: str = "") -> bool:
    """Return whether each service whose name begins so is ready."""
    parts = [r.part for name, r in stack.running.items() if isinstance(r.part, Service) and name.startswith(prefix)]
    return all(await asyncio.gather(*(part.is_ready() for part in parts)))


async def _measure(stack: Stack, trial: Trial, crowd: Crowd, result: Result, stage: Stage, limits: Limits) -> None:
    stage("devices come once")
    await crowd.prepare()
    crowd.start()
    stage("load")
    await crowd.until_confirmed(STORED_MESSAGES if trial.phase is Phase.DRAINING else WARM_MESSAGES)
    if trial.phase is Phase.DRAINING:
        crowd.come()
    stage(f"fault on {result.victim}")
    begin = time.monotonic()
    await trial.fault.happen(crowd)
    back = time.monotonic()
    result.away_s = round(back - begin, 2)
    stage("healing")
    probe = Probe(stack, trial.with_history, limits)
    try:
        healed = await probe.healed()
        result.healed_s = round(healed - back, 2)
    except (TimeoutError, AssertionError) as error:
        result.problems.append(f"messages did not pass in time in {limits.probe:g} s: {error}")
    if result.healed_s is None or result.healed_s > HEALED_S:
        partitions = stack.settings.partitions
        result.slow = [
            f"{took:.1f} s to partition {partition_of(to, partitions)} at {at - back:.1f} s"
            for at, to, took in probe.slow
        ]
    stage("all are ready")
    await eventually(partial(_all_ready, stack), "every service is ready", limits.probe)
    stage("load after the fault")
    await crowd.until_confirmed(crowd.confirmed + AFTER_MESSAGES)
    outcome = await crowd.finish(limits.drain, stage)
    result.confirmed, result.sent_again = outcome.confirmed, outcome.sent_again
    result.lost, result.swapped, result.repeated = outcome.lost, outcome.swapped, outcome.repeated
    result.missed = outcome.missed
    result.problems += outcome.problems
    stage("audit")
    result.audit, findings = await audit(stack, trial.fault.loses_records)
    result.problems += findings
