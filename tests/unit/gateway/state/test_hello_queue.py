"""The queue of those who have not said hello: bounded, and the one silent for longest gives way."""

from __future__ import annotations

from functools import partial

from gateway.state.hello_queue import HelloQueue


def test_past_the_limit_the_one_that_waits_for_longest_is_given_up() -> None:
    queue, gone = HelloQueue(2), list[str]()
    waits = {name: partial(gone.append, name) for name in "abcde"}
    for name in "abc":
        queue.add(waits[name])
    assert (gone, len(queue)) == (["a"], 2)
    # The hello of b is there.
    queue.remove(waits["b"])
    queue.remove(waits["a"])
    queue.add(waits["d"])
    assert (gone, len(queue)) == (["a"], 2)
    queue.add(waits["e"])
    assert (gone, len(queue)) == (["a", "c"], 2)
