"""Topics are deleted and made anew while all run: who knows them ends with a clear error, nothing accepted is lost."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.faults.crowd import Phase
from tests.faults.recreated import LIMITS, TOPICS, Recreation, trial_of
from tests.faults.stacks import LargerStack
from tests.faults.trial import run_trial


@pytest.mark.long
async def test_processes_end_when_a_topic_is_made_anew_and_nothing_accepted_is_lost(tmp_path: Path) -> None:
    async with LargerStack(tmp_path / "stack") as stack:
        for topic in TOPICS:
            result = await run_trial(stack, trial_of(Recreation(topic, Phase.LIVE), stack), print, LIMITS)
            assert result.kept, result
