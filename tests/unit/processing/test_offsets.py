from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from chat_streams.processing.offsets import RESEEK_SECONDS, SAMPLE_SECONDS, Admission, Checkpoint, Progress, Start

LOSS_WINDOW = 60.0


@pytest.fixture
def progress() -> Progress[str]:
    found: Progress[str] = Progress(LOSS_WINDOW)
    found.start("p", Start(100, Checkpoint()), 0.0)
    return found


def run_of(progress: Progress[str]) -> int:
    epoch = progress.epoch("p")
    assert epoch is not None
    return epoch


def apply(progress: Progress[str], offset: int, now: float) -> None:
    assert progress.admit("p", offset, now) is Admission.APPLY
    assert progress.done("p", run_of(progress), offset, offset, now)


def rewind(progress: Progress[str], now: float) -> int:
    """Rewind to the start of the loss window, as a worker does whose Redis may have lost writes."""
    offset = progress.rewind_offset("p")
    progress.rewind("p", offset, now)
    return offset


def test_records_are_admitted_in_contiguous_order(progress: Progress[str]) -> None:
    assert progress.admit("p", 101, 0.0) is Admission.HOLE
    assert progress.admit("p", 100, 0.0) is Admission.APPLY
    assert progress.admit("p", 100, 0.0) is Admission.REPLAY
    assert progress.admit("p", 99, 0.0) is Admission.REPLAY
    assert progress.admit("p", 102, 0.0) is Admission.HOLE
    assert progress.admit("p", 101, 0.0) is Admission.APPLY


def test_only_what_is_done_is_committed(progress: Progress[str]) -> None:
    assert progress.committable("p") == 100
    for offset in (100, 101, 102):
        progress.admit("p", offset, 0.0)
    progress.admit("p", 110, 0.0)
    assert progress.committable("p") == 100
    assert progress.done("p", run_of(progress), 100, 101, 0.0)
    assert progress.committable("p") == 102


@pytest.mark.parametrize(("first", "last"), [(101, 102), (102, 102), (99, 101), (100, 103)])
def test_what_does_not_follow_on_what_is_done_is_not_done(progress: Progress[str], first: int, last: int) -> None:
    for offset in (100, 101, 102):
        progress.admit("p", offset, 0.0)
    assert not progress.done("p", run_of(progress), first, last, 0.0)
    assert progress.committable("p") == 100


def test_partitions_know_nothing_of_each_other(progress: Progress[str]) -> None:
    progress.start("q", Start(7, Checkpoint()), 0.0)
    apply(progress, 100, 0.0)
    assert (progress.committable("p"), progress.committable("q")) == (101, 7)
    assert progress.admit("q", 7, 0.0) is Admission.APPLY
    assert progress.epoch("p") != progress.epoch("q")


def test_a_partition_that_is_not_assigned_keeps_no_state(progress: Progress[str]) -> None:
    epoch = run_of(progress)
    progress.admit("p", 100, 0.0)
    progress.clear()
    assert "p" not in progress
    assert progress.done("p", epoch, 100, 100, 0.0)
    assert progress.admit("p", 101, 0.0) is None
    assert progress.committable("p") is None
    assert progress.epoch("p") is None
    assert progress.to_commit("p") is None
    assert not progress.stalled("p", 1000, 1000.0, 1.0)
    progress.fence("p", "t")
    assert progress.token("p") == ""
    assert "p" not in progress


def test_effects_of_an_earlier_run_that_end_late_do_not_count(progress: Progress[str]) -> None:
    earlier = run_of(progress)
    for offset in (100, 101, 102):
        progress.admit("p", offset, 0.0)
    progress.clear()
    progress.start("p", Start(100, Checkpoint()), 1.0)
    assert progress.done("p", earlier, 100, 102, 2.0)
    assert progress.committable("p") == 100
    assert progress.admit("p", 100, 2.0) is Admission.APPLY


def test_effects_under_way_at_a_rewind_do_not_count(progress: Progress[str]) -> None:
    earlier = run_of(progress)
    apply(progress, 100, 0.0)
    progress.admit("p", 101, 1.0)
    assert rewind(progress, 1.0) == 100
    assert progress.done("p", earlier, 101, 101, 2.0)
    assert progress.committable("p") == 100
    assert progress.admit("p", 101, 2.0) is Admission.HOLE
    assert progress.admit("p", 100, 2.0) is Admission.APPLY


def test_a_hole_seeks_once_and_again_only_when_that_had_its_time(progress: Progress[str]) -> None:
    assert progress.reseek("p", 10.0) == 100
    assert progress.reseek("p", 10.0 + RESEEK_SECONDS / 2) is None
    assert progress.reseek("p", 10.0 + RESEEK_SECONDS) == 100


def test_another_hole_after_records_went_on_seeks_at_once(progress: Progress[str]) -> None:
    assert progress.reseek("p", 10.0) == 100
    apply(progress, 100, 10.1)
    assert progress.reseek("p", 10.2) == 101


def test_records_that_are_gone_from_the_log_count_as_done_and_none_comes_twice(progress: Progress[str]) -> None:
    apply(progress, 100, 0.0)
    assert progress.skip_to("p", run_of(progress), 200, 0.0)
    # So that the lag ends also where nothing new comes.
    assert progress.committable("p") == 200
    assert progress.admit("p", 101, 0.0) is Admission.REPLAY
    assert progress.admit("p", 200, 0.0) is Admission.APPLY
    assert not progress.skip_to("p", run_of(progress), 150, 0.0)
    assert progress.admit("p", 201, 0.0) is Admission.APPLY


def test_nothing_is_skipped_before_what_is_under_way_or_in_a_run_that_is_over(progress: Progress[str]) -> None:
    before = run_of(progress)
    progress.admit("p", 100, 0.0)
    assert not progress.skip_to("p", before, 200, 0.0), "record 100 is not done: skipping would commit it"
    progress.restart("p", 0.0)
    assert not progress.skip_to("p", before, 200, 0.0)
    assert progress.committable("p") == 100
    progress.clear()
    assert not progress.skip_to("p", before, 200, 0.0)


def test_a_partition_is_stalled_when_it_stands_still_though_the_log_goes_on(progress: Progress[str]) -> None:
    apply(progress, 100, 5.0)
    assert not progress.stalled("p", 101, 100.0, 10.0), "nothing is left to read"
    assert not progress.stalled("p", 102, 15.0, 10.0), "the time limit is not over"
    assert progress.stalled("p", 102, 15.1, 10.0)
    progress.reseek("p", 15.1)
    assert not progress.stalled("p", 102, 25.0, 10.0), "a seek gets its time"
    progress.admit("p", 101, 26.0)
    assert not progress.stalled("p", 110, 1000.0, 10.0), "what is under way may wait for an engine"


def test_a_rewind_goes_back_the_loss_window_and_not_much_further(progress: Progress[str]) -> None:
    done_at = {offset: (offset - 100) / 10 for offset in range(100, 6_100)}
    for offset, now in done_at.items():
        apply(progress, offset, now)
    now = done_at[6_099]
    first = rewind(progress, now)
    assert now - LOSS_WINDOW - 2 * SAMPLE_SECONDS <= done_at[first] <= now - LOSS_WINDOW
    assert progress.committable("p") == first


def test_after_a_quiet_time_a_rewind_goes_back_to_before_it(progress: Progress[str]) -> None:
    apply(progress, 100, 0.0)
    apply(progress, 101, 1_000.0)
    apply(progress, 102, 1_000.5)
    assert rewind(progress, 1_001.0) <= 101


def test_a_second_rewind_goes_as_far_as_the_first(progress: Progress[str]) -> None:
    for offset in range(100, 200):
        apply(progress, offset, float(offset))
    first = rewind(progress, 200.0)
    for offset in range(first, first + 5):
        apply(progress, offset, 201.0 + (offset - first) * 2)
    assert rewind(progress, 212.0) == first


def test_samples_are_bounded(progress: Progress[str]) -> None:
    for offset in range(100, 40_100):
        apply(progress, offset, (offset - 100) / 50)
    assert len(progress._partitions["p"].samples) <= LOSS_WINDOW / SAMPLE_SECONDS + 2


def test_another_worker_goes_back_by_the_checkpoint(progress: Progress[str]) -> None:
    progress.fence("p", "token")
    assert progress.token("p") == "token"
    for offset in range(100, 300):
        apply(progress, offset, float(offset))
    found = progress.to_commit("p")
    assert found is not None
    committed, checkpoint = found
    assert (committed, checkpoint.token) == (300, "token")
    assert checkpoint.rewind is not None
    assert checkpoint.rewind <= 300 - LOSS_WINDOW

    other: Progress[str] = Progress(LOSS_WINDOW)
    other.start("p", Start(300, checkpoint), 0.0)  # its clock is its own
    assert other.token("p") == "", "a partition is fenced anew in every run"
    assert other.to_commit("p") == (300, checkpoint)
    assert other.admit("p", 300, 0.0) is Admission.APPLY
    assert rewind(other, 1.0) == checkpoint.rewind
    assert other.admit("p", 300, 1.0) is Admission.HOLE


def test_a_checkpoint_ahead_of_its_offset_does_not_move_it_forward() -> None:
    progress: Progress[str] = Progress(LOSS_WINDOW)
    progress.start("p", Start(50, Checkpoint("t", 80)), 0.0)
    assert rewind(progress, 1.0) == 50


def test_a_rewind_forgets_the_token(progress: Progress[str]) -> None:
    progress.fence("p", "token")
    rewind(progress, 1.0)
    assert progress.token("p") == ""
    assert progress.expected_token("p") == "token", "a server that has it lost nothing since"


class Partition(RuleBasedStateMachine):
    """One partition under a broker that skips and repeats, effects that end late, rewinds and rebalances."""

    def __init__(self) -> None:
        super().__init__()
        self.progress: Progress[str] = Progress(LOSS_WINDOW)
        self.now = 0.0
        self.first = 0
        self.fetch = 0
        self.under_way: list[tuple[int, int]] = []
        self.done_in_run: set[int] = set()
        self.done_at: dict[int, float] = {}
        self.commits: list[tuple[int, Checkpoint]] = []

    @initialize(start=st.integers(0, 5))
    def begin(self, start: int) -> None:
        self._start(Start(start, Checkpoint()))

    def _start(self, start: Start) -> None:
        self.progress.start("p", start, self.now)
        self._new_run(start.offset)

    def _new_run(self, first: int) -> None:
        self.first = self.fetch = first
        self.done_in_run = set()

    @rule(gap=st.sampled_from([0, 0, 0, 0, 1, 7, -1, -2, -9]), count=st.integers(1, 5))
    def arrive(self, gap: int, count: int) -> None:
        self.fetch = max(0, self.fetch + gap)
        for _ in range(count):
            verdict = self.progress.admit("p", self.fetch, self.now)
            assert verdict is not None
            if verdict is Admission.APPLY:
                self.under_way.append((run_of(self.progress), self.fetch))
            elif verdict is Admission.HOLE and (offset := self.progress.reseek("p", self.now)) is not None:
                self.fetch = offset
                continue
            self.fetch += 1

    @precondition(lambda self: self.under_way)
    @rule(data=st.data())
    def finish(self, data: st.DataObject) -> None:
        count = data.draw(st.integers(1, len(self.under_way)))
        finished, self.under_way = self.under_way[:count], self.under_way[count:]
        self._done(finished)

    @precondition(lambda self: self.under_way)
    @rule()
    def finish_an_earlier_run_last(self) -> None:
        current = run_of(self.progress)
        ordered = sorted(self.under_way, key=lambda it: it[0] != current)
        self.under_way = []
        self._done(ordered)

    @precondition(lambda self: len(self.under_way) > 1)
    @rule(data=st.data())
    def finish_one_before_those_before_it(self, data: st.DataObject) -> None:
        epoch, offset = data.draw(st.sampled_from(self.under_way[1:]))
        before = self.progress.committable("p")
        if epoch == run_of(self.progress) and offset != before:
            assert not self.progress.done("p", epoch, offset, offset, self.now)
        assert self.progress.committable("p") == before

    def _done(self, finished: list[tuple[int, int]]) -> None:
        for epoch, offset in finished:
            if epoch == run_of(self.progress):
                self.done_in_run.add(offset)
                self.done_at[offset] = self.now
            else:
                # Done in a later run before: then it changes nothing.
                self.done_at.setdefault(offset, self.now)
            assert self.progress.done("p", epoch, offset, offset, self.now)

    @rule(seconds=st.sampled_from([0.1, 1.0, 5.0, LOSS_WINDOW / 2, LOSS_WINDOW]))
    def wait(self, seconds: float) -> None:
        self.now += seconds

    @rule()
    def commit(self) -> None:
        found = self.progress.to_commit("p")
        assert found is not None
        self.commits.append(found)

    @rule()
    def rewind(self) -> None:
        offset = rewind(self.progress, self.now)
        self._assert_covers_the_loss_window(offset)
        self._new_run(offset)

    @precondition(lambda self: self.commits)
    @rule(loses_data=st.booleans())
    def rebalance(self, loses_data: bool) -> None:
        self.progress.clear()
        self._start(Start(*self.commits[-1]))
        if loses_data:
            self.rewind()

    def _assert_covers_the_loss_window(self, offset: int) -> None:
        lately = [o for o, at in self.done_at.items() if at > self.now - LOSS_WINDOW]
        assert offset <= min(lately, default=offset)

    @invariant()
    def committable_never_passes_what_is_not_done_in_this_run(self) -> None:
        offset = self.progress.committable("p")
        if offset is not None:
            assert set(range(self.first, offset)) <= self.done_in_run
            assert offset >= self.first

    def teardown(self) -> None:
        # Whatever happened, a broker that works again brings everything through.
        if "p" not in self.progress:
            return
        end = max([self.fetch, self.first, *self.done_at, *(offset for _, offset in self.under_way)]) + 3
        for _ in range(3):
            self.now += RESEEK_SECONDS
            if (offset := self.progress.reseek("p", self.now)) is not None:
                self.fetch = offset
            self.arrive(0, end - self.fetch)
            if self.under_way:
                self.finish_an_earlier_run_last()
        assert self.progress.committable("p") == end
        self.committable_never_passes_what_is_not_done_in_this_run()


TestPartition = Partition.TestCase
TestPartition.settings = settings(deadline=None, max_examples=100, stateful_step_count=30)
