"""A repartition is killed at each step, under load: run again it goes on, or opens the log, and nothing is lost."""

from __future__ import annotations

import asyncio
import itertools
import json
import signal
import sys

import pytest

from chat_streams.kafka.names import HISTORY, INCOMING_MESSAGES
from docker.local.layout import ROOT
from docker.local.probes import WITHIN_S
from docker.local.temporary_stack import Stack
from tests.faults.crowd import Crowd, Phase
from tests.faults.test_repartition import NEW, PARTITIONS, SERVICES, restart
from tests.integration.commands import Done, call, run


async def run_killed(stack: Stack, steps: int) -> Done:
    """Run a repartition that kills itself after so many steps."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tests.faults.killed_repartition", str(steps), str(PARTITIONS)),
        cwd=ROOT,
        env=stack.environment,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, err = await process.communicate()
    assert process.returncode is not None
    return Done(process.returncode, out.decode(), err.decode())


async def assert_it_opens_the_log(stack: Stack, crowd: Crowd) -> None:
    """Run a repartition that cannot end, since history applies nothing: the log is open after it."""
    history = stack.running["history"]
    history.pause()
    try:
        late = await run(stack, "topics", "repartition", "--partitions", PARTITIONS, "--wait", "3", "--json", code=1)
    finally:
        history.resume()
    assert "not applied in time" in late.err
    assert f"{INCOMING_MESSAGES} by {HISTORY}" in late.err
    last = json.loads(late.out.splitlines()[-1])
    assert (last["stage"], last["text"]) == ("open", f"{INCOMING_MESSAGES} is open, nothing has changed")
    assert (await call(stack, ["topics", "check"])).code == 0
    await crowd.until_confirmed(crowd.confirmed + 100)


@pytest.mark.long
async def test_a_repartition_that_is_killed_at_each_step_goes_on_when_it_is_run_again(stack: Stack) -> None:
    crowd = Crowd(stack, [stack.url], Phase.LIVE, "killed repartition", confirm_s=3 * WITHIN_S)
    try:
        await crowd.prepare()
        crowd.start()
        await crowd.until_confirmed(200)
        await assert_it_opens_the_log(stack, crowd)
        stages, is_given_up = set(), False
        for steps in itertools.count(1):
            done = await run_killed(stack, steps)
            assert done.code == -signal.SIGKILL, done
            stage = done.out.splitlines()[-1].partition(" ")[0]
            stages.add(stage)
            if stage == "ended":
                break
            check = await call(stack, ["topics", "check"])
            if stage != "open":
                assert check.code == 1
                assert "closed by a repartition" in check.err
            if stage == "closed" and not is_given_up:
                # Not only can what was killed go on: it can be given up, too.
                await assert_it_opens_the_log(stack, crowd)
                is_given_up = True
        assert stages == {"open", "announced", "closed", "ended"}
        again = await run(stack, "topics", "repartition", "--partitions", PARTITIONS, code=1)
        assert "set CHAT_TOPICS_VERSION=2 and CHAT_PARTITIONS=16" in again.err
        confirmed = crowd.confirmed
        await asyncio.gather(*(restart(stack, name) for name in SERVICES))
        await crowd.until_confirmed(confirmed + 500)
        outcome = await crowd.finish(30, lambda _: None)
    finally:
        await crowd.cancel()
    assert (outcome.lost, outcome.swapped, outcome.repeated, outcome.problems) == (0, 0, 0, [])
    assert (await run(stack, "audit", "--json", **NEW)).json["clean"]
