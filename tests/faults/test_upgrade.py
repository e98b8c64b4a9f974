"""A rolling upgrade from an older commit's code under load loses nothing: ``UPGRADE_FROM=COMMIT``, or the last tag."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from docker.local.layout import ROOT
from tests.faults.trial import run_trial
from tests.faults.upgrade import LIMITS, ORDERS, OldStack, trial_of, unpack


@pytest.fixture(scope="module")
def old_code(tmp_path_factory: pytest.TempPathFactory) -> Path:
    commit = os.environ.get("UPGRADE_FROM")
    if commit is None:
        described = subprocess.run(
            ["git", "describe", "--tags", "--abbrev=0"], cwd=ROOT, capture_output=True, text=True
        )
        if described.returncode != 0:
            pytest.skip("nothing to upgrade from: set UPGRADE_FROM to a commit, there is no tag")
        commit = described.stdout.strip()
    return unpack(commit, tmp_path_factory.mktemp("old"))


@pytest.mark.long
@pytest.mark.timeout(LIMITS.whole + 600)
@pytest.mark.parametrize("order", ORDERS)
async def test_a_rolling_upgrade_under_load_loses_nothing(old_code: Path, tmp_path: Path, order: str) -> None:
    async with OldStack(old_code, tmp_path) as stack:
        result = await run_trial(stack, trial_of(order, stack), print, LIMITS)
        assert result.ok, result
        assert {running.part.code for running in stack.running.values()} == {ROOT}


@pytest.mark.long
def test_the_code_of_a_commit_is_unpacked(tmp_path: Path) -> None:
    code = unpack("HEAD", tmp_path)
    assert (code / "chat_streams" / "messaging.py").exists()
    with pytest.raises(subprocess.CalledProcessError):
        unpack("no-such-commit", tmp_path)
