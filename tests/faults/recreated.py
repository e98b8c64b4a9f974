"""A topic is deleted and made anew while all run: every process that knows it ends, and nothing accepted is lost."""

from __future__ import annotations

import argparse
from functools import partial
from typing import NamedTuple

from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.errors import for_code

from chat_streams.kafka.names import INCOMING_MESSAGES, OUTGOING_MESSAGES, SESSION_EVENTS
from chat_streams.kafka.topics import NEEDS, Topic, of_users
from docker.local.part import Running
from docker.local.parts import Service
from docker.local.probes import eventually
from docker.local.temporary_stack import Stack
from tests.faults.crowd import Crowd, Phase
from tests.faults.report import print_table, table_of
from tests.faults.runner import Plan, add_options, options_of, show
from tests.faults.stacks import LargerStack
from tests.faults.trial import PROMISED, Fault, Trial
from tests.integration.commands import call, run

SEED = 1
TOPICS = (INCOMING_MESSAGES, SESSION_EVENTS, OUTGOING_MESSAGES)
"""The topics without which an audit can still tell all: the acknowledgements are in ``inbox_requests``."""
ENDED_S = 60.0
"""The largest number of seconds until all processes have noticed and ended: they look every 10 s."""
AWAY_S = 120.0
"""Seconds that everything may be away: until all have ended and are started again, on two cores."""
LIMITS = PROMISED._replace(confirm=PROMISED.confirm + AWAY_S, whole=PROMISED.whole + AWAY_S)


class Recreation(NamedTuple):
    """The topic that is made anew, and the phase in which that happens."""

    topic: str
    phase: Phase

    def __str__(self) -> str:
        return f"recreated:{self.topic}:{self.phase}"


class TopicRecreated(Fault):
    """A topic is deleted and made anew under load.

    What was accepted is applied first, since what a deleted topic holds is gone. What is sent from then on may be
    refused, and what is confirmed must arrive.
    """

    def __init__(self, stack: Stack, topic: str) -> None:
        super().__init__(stack)
        self.victim = topic

    async def happen(self, crowd: Crowd) -> None:
        """Make the topic anew, see every process end, note the new log and start all again, as an operator does."""
        users = [r for name, r in self.stack.running.items() if self.victim in NEEDS.get(name.partition("-")[0], {})]
        logs = {running.part.name: running.part.log.stat().st_size for running in users}
        await crowd.pause()
        await eventually(self._is_all_applied, "all that was accepted is applied")
        self.away.update(logs)
        await self._make_anew()
        crowd.resume()
        for running in users:
            await eventually(lambda: not running.alive, f"{running.part.name} ends", ENDED_S)  # noqa: B023
            self._check_last_words(running, logs[running.part.name])
        await run(self.stack, "topics", "create")
        # Workers first: a gateway is ready without them.
        for running in sorted(users, key=lambda running: running.part.name.startswith("gateway")):
            assert isinstance(running.part, Service)
            await self.stack.start(running.part)
            self.away.discard(running.part.name)

    async def _is_all_applied(self) -> bool:
        rows = (await call(self.stack, ["lag", "--json"])).json
        return not any(row["records"] for row in rows if row["topic"] == INCOMING_MESSAGES)

    async def _make_anew(self) -> None:
        settings = self.stack.settings
        wanted = {topic.name: topic for topic in of_users(settings, 1, settings.partitions)}
        topic = wanted.get(self.victim, Topic(self.victim, settings.slots, {}))
        admin = AIOKafkaAdminClient(bootstrap_servers=settings.kafka)
        await admin.start()
        try:
            await admin.delete_topics([topic.name])

            async def is_made() -> bool:
                answer = await admin.create_topics(
                    [NewTopic(topic.name, topic.partitions, 1, topic_configs=topic.config)]
                )
                ((_, code, *text),) = answer.topic_errors
                assert not code or for_code(code).__name__ == "TopicAlreadyExistsError", text
                return not code

            await eventually(is_made, f"{topic.name} is made anew")
        finally:
            await admin.close()

    def _check_last_words(self, running: Running, begin: int) -> None:
        words = running.part.log.read_bytes()[begin:].decode(errors="replace")
        name = running.part.name
        assert running.process.returncode not in (0, None), f"{name} ended with {running.process.returncode}"
        assert f"topic {self.victim} was deleted and made anew" in words, f"{name} does not say why it ended"


def trial_of(recreation: Recreation, stack: Stack) -> Trial:
    """Return the trial of a topic made anew."""
    return Trial(str(recreation), SEED, recreation.phase, TopicRecreated(stack, recreation.topic), with_history=True)


def main() -> None:
    """Parse the command line and run; exits with 1 if a process went on, or a message was lost, swapped or repeated."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults.recreated", description=__doc__)
    parser.add_argument("--topics", nargs="*", default=TOPICS, metavar="TOPIC", help=f"default: {' '.join(TOPICS)}")
    add_options(parser)
    options = parser.parse_args()
    phases = {topic: Phase if topic == INCOMING_MESSAGES else (Phase.LIVE,) for topic in options.topics}
    recreations = [Recreation(topic, phase) for topic, each in phases.items() for phase in each]
    work: dict[tuple[str, int], Plan[LargerStack]] = {(str(r), SEED): partial(trial_of, r) for r in recreations}
    results = show(work, LargerStack, options_of(options), limits=LIMITS)
    print_table(table_of("A topic made anew", results))
    raise SystemExit(0 if all(result.ok for result in results) else 1)


if __name__ == "__main__":
    main()
