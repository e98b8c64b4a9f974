"""The steps of a repartition, in a model of the log: killed anywhere and run again, nothing that was taken is left."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import pytest

from chat_streams.operations.repartition_steps import Action, Ends, Stage, Steps

TOPIC = "incoming_messages"
MOST_UNAPPLIED = 7
END = 1_000
"""The end of each partition, in a model in which only the distance to it counts."""


class Model(NamedTuple):
    """A log, and the command that is to end it: all that what may happen next depends on."""

    messages: int
    """The number still to be sent, by gateways that heed nothing."""
    on_their_way: tuple[tuple[int, ...], ...]
    """By partition: what a leader has taken and not shown yet; for each, how many of our records have passed it."""
    unapplied: tuple[tuple[bool, ...], ...]
    """By partition: the records behind the last one that is applied; true for a message, false for one of ours."""
    is_closed: tuple[bool, ...]
    """By partition: whether its leader has been told so."""
    is_to_be_closed: bool = False
    has_ended: bool = False
    # The command, if there is one.
    action: Action | None = None
    left: int = 0
    """The partitions that the action is still to be done on."""
    stage: Stage = Stage.OPEN
    quiet: int = 0
    known_ends: tuple[int | None, ...] = ()
    """By partition: the end that the command knows of, from the real one."""
    has_moved: bool = False

    @classmethod
    def of(cls, partitions: int, messages: int) -> Model:
        return cls(messages, ((),) * partitions, ((),) * partitions, (False,) * partitions)

    def append(self, partition: int, is_message: bool) -> Model:
        assert not (is_message and self.has_ended), "a message came into a log that has ended"
        known = self.known_ends
        if known and (end := known[partition]) is not None:
            known = put(known, partition, end - 1)
        unapplied = put(self.unapplied, partition, (*self.unapplied[partition], is_message))
        return self._replace(known_ends=known, unapplied=unapplied)

    def arrive(self, partition: int) -> Model:
        way = put(self.on_their_way, partition, self.on_their_way[partition][1:])
        return self._replace(on_their_way=way).append(partition, True)

    def write(self, partition: int) -> Model:
        """Write a record of ours; one may pass a message that a leader is just taking, but not two."""
        model = self
        while any(model.on_their_way[partition]):
            model = model.arrive(partition)
        way = put(model.on_their_way, partition, (1,) * len(model.on_their_way[partition]))
        model = model._replace(on_their_way=way).append(partition, False)
        ends = model.ends()
        ends.wrote((TOPIC, partition), END - 1)
        return model._replace(known_ends=put(model.known_ends, partition, 0), has_moved=ends.take_moved())

    def ends(self) -> Ends:
        ends = Ends()
        for partition, end in enumerate(self.known_ends):
            if end is not None:
                ends.saw((TOPIC, partition), END + end)
        ends.take_moved()
        if self.has_moved:
            ends.saw((TOPIC, -1), 0)
            del ends._ends[TOPIC, -1]
        return ends

    def go(self, action: Action, **more: Any) -> Model:
        return self._replace(action=action, left=len(self.is_closed), **more)

    def step(self) -> Model:
        """Make the next request of the command."""
        partition = self.left - 1
        if self.action is None:
            return self.go(Steps().begin(), stage=Stage.ANNOUNCED, quiet=0, known_ends=(None,) * len(self.is_closed))
        if self.action is Action.ANNOUNCE:
            return self.go(Action.LOOK)
        if self.action is Action.LOOK and self.left:
            return self.write(partition)._replace(left=partition)
        if self.action is Action.LOOK:
            ends, steps = self.ends(), Steps()
            steps.stage, steps._quiet = self.stage, self.quiet
            committed = {(TOPIC, p): END - len(rest) for p, rest in enumerate(self.unapplied)}
            action = steps.after_look(ends.take_moved(), ends.are_applied(committed, committed))
            return self.go(action, stage=steps.stage, quiet=steps._quiet, has_moved=False)
        if self.action is Action.CLOSE:
            model = self._replace(is_to_be_closed=True)
            if not self.left:
                return model.go(Action.LOOK)
            return model._replace(left=partition) if self.is_closed[partition] else model.write(partition)
        if self.action is Action.OPEN:
            return self.go(Action.LOOK, is_to_be_closed=False)
        assert not any(map(any, self.unapplied)), "a message of a log that has ended is not applied"
        return self.kill()._replace(has_ended=True)

    def kill(self) -> Model:
        return self._replace(action=None, left=0, stage=Stage.OPEN, quiet=0, known_ends=(), has_moved=False)

    def followers(self) -> Iterator[Model]:
        """Return all that may happen next."""
        for partition, is_closed in enumerate(self.is_closed):
            if self.messages and not is_closed:
                way = put(self.on_their_way, partition, (*self.on_their_way[partition], 0))
                yield self._replace(messages=self.messages - 1, on_their_way=way)
            if self.on_their_way[partition]:
                yield self.arrive(partition)
            if self.unapplied[partition]:
                yield self._replace(unapplied=put(self.unapplied, partition, self.unapplied[partition][1:]))
            yield self._replace(is_closed=put(self.is_closed, partition, self.is_to_be_closed))
        if not self.has_ended:
            # Bounded, so that there is an end: the readers come along.
            if max(map(len, self.unapplied)) < MOST_UNAPPLIED:
                yield self.step()
            if self.action is not None:
                yield self.kill()
                # It runs out of time, and undoes what it did.
                yield self.kill()._replace(is_to_be_closed=False)


def put(of: tuple[Any, ...], index: int, value: Any) -> tuple[Any, ...]:
    return (*of[:index], value, *of[index + 1 :])


@pytest.mark.parametrize(("partitions", "messages"), [(1, 2), (2, 1)])
def test_killed_anywhere_and_run_again_it_leaves_no_message_behind(partitions: int, messages: int) -> None:
    seen = {Model.of(partitions, messages)}
    waiting, ended = list(seen), set()
    while waiting:
        model = waiting.pop()
        if model.has_ended:
            assert all(model.is_closed)
            assert not any(model.on_their_way), "a message is on its way into a log that has ended"
            ended.add(model)
        for follower in model.followers():
            if follower not in seen:
                seen.add(follower)
                waiting.append(follower)
    assert ended
    assert len(seen) > 1_000
    if partitions == 1:
        for model in seen:
            assert_it_comes_to_an_end(model)


def assert_it_comes_to_an_end(model: Model) -> None:
    """Run the command without a fault, where all others do their part, however far it has come."""
    for _ in range(60):
        if model.has_ended:
            return
        model = model.step()
        for partition in range(len(model.is_closed)):
            while model.on_their_way[partition]:
                model = model.arrive(partition)
        model = model._replace(
            unapplied=((),) * len(model.is_closed), is_closed=(model.is_to_be_closed,) * len(model.is_closed)
        )
    raise AssertionError(f"no end: {model}")


@pytest.fixture
def steps() -> Steps:
    found = Steps()
    assert found.begin() is Action.ANNOUNCE
    return found


def looks(steps: Steps, *found: tuple[bool, bool]) -> list[Action]:
    return [steps.after_look(*each) for each in found]


NEW, BEHIND, QUIET = (True, True), (False, False), (False, True)


def test_the_log_is_closed_after_two_quiet_looks_and_has_ended_after_two_more(steps: Steps) -> None:
    assert looks(steps, NEW, BEHIND, QUIET, QUIET) == [Action.LOOK, Action.LOOK, Action.LOOK, Action.CLOSE]
    assert looks(steps, QUIET, QUIET) == [Action.LOOK, Action.END]
    assert steps.stage is Stage.CLOSED, "whether the next log has begun is for Kafka to say"


@pytest.mark.parametrize("between", [NEW, BEHIND])
def test_a_look_that_is_not_quiet_begins_the_count_again(steps: Steps, between: Any) -> None:
    assert looks(steps, QUIET, between, QUIET) == [Action.LOOK] * 3
    assert steps.stage is Stage.ANNOUNCED


def test_what_comes_into_a_closed_log_opens_it_and_all_is_waited_for_again(steps: Steps) -> None:
    assert looks(steps, QUIET, QUIET)[-1] is Action.CLOSE
    assert looks(steps, QUIET, NEW) == [Action.LOOK, Action.OPEN]
    assert steps.stage is Stage.ANNOUNCED
    assert looks(steps, QUIET, QUIET, QUIET, QUIET)[-1] is Action.END


def test_who_is_behind_a_closed_log_is_waited_for_and_it_stays_closed(steps: Steps) -> None:
    looks(steps, QUIET, QUIET)
    assert looks(steps, BEHIND, BEHIND, QUIET) == [Action.LOOK] * 3
    assert steps.stage is Stage.CLOSED


def test_only_records_of_others_move_the_ends() -> None:
    ends = Ends()
    ends.wrote((TOPIC, 0), 7)
    ends.saw(("session_events", 0), 3)
    assert ends.take_moved(), "nothing is known before the first look"
    ends.wrote((TOPIC, 0), 8)
    ends.saw(("session_events", 0), 3)
    assert not ends.take_moved()
    ends.wrote((TOPIC, 0), 10)
    assert ends.take_moved()
    ends.saw(("session_events", 0), 4)
    assert ends.take_moved()
    assert not ends.take_moved()


def test_a_partition_is_applied_from_its_end_on_and_an_empty_one_without_an_offset() -> None:
    ends = Ends()
    ends.wrote((TOPIC, 0), 7)
    ends.saw((TOPIC, 1), 0)
    both = [(TOPIC, 0), (TOPIC, 1)]
    assert not ends.are_applied(both, {})
    assert not ends.are_applied(both, {(TOPIC, 0): 7})
    assert ends.are_applied(both, {(TOPIC, 0): 8})
    assert ends.are_applied(both[1:], {})
