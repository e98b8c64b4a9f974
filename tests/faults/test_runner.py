"""Runs of trials are resumed where they were; no engine is needed for that."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.faults import runner
from tests.faults.crowd import Phase
from tests.faults.matrix import _selected
from tests.faults.proxy import CuttableStack
from tests.faults.runner import Options, Plan, show
from tests.faults.trial import Result

Ran = list[str]


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch) -> Ran:
    """Replace the trials by results: "bad" fails, all others are OK; returns the names of those that ran."""
    names: Ran = []

    async def run(work: Sequence[Any], _: object, __: object, done: Callable[[Result], None], *___: object) -> None:
        for name in work:
            names.append(name)
            done(Result(name, 1, audit="clean", healed_s=None if name == "bad" else 0.1))

    monkeypatch.setattr(runner, "run", run)
    monkeypatch.setattr(runner, "code_version", lambda: "abc")
    return names


def start(file: Path, names: Sequence[str], setting: str = "pause 10") -> list[Result]:
    work: dict[tuple[str, int], Plan[CuttableStack]] = {(name, 1): name for name in names}  # type: ignore[misc]
    return show(work, CuttableStack, Options(file, resume=True), setting)


def test_a_resumed_run_leaves_out_what_was_ok(ran: Ran, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "results.json"
    start(file, ["one", "bad"])
    results = start(file, ["one", "bad", "two"])
    assert ran == ["one", "bad", "bad", "two"]
    assert [result.ok for result in results] == [True, False, True]
    assert "left out, OK at abc: one seed 1" in capsys.readouterr().err
    assert [result["cell"] for result in json.loads(file.read_text())] == ["one", "bad", "two"]


@pytest.mark.parametrize(("version", "setting"), [("def", "pause 10"), ("abc", "pause 30"), ("abc+", "pause 10")])
def test_a_run_with_other_code_or_options_leaves_out_nothing(
    ran: Ran, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, version: str, setting: str
) -> None:
    start(tmp_path / "results.json", ["one"])
    monkeypatch.setattr(runner, "code_version", lambda: version)
    start(tmp_path / "results.json", ["one"], setting)
    assert ran == ["one", "one"]


def test_cells_of_several_parts_in_a_phase_are_selected_together() -> None:
    parts = "messaging", "notification", "history", "kafka"
    cells = _selected([f"*:{part}:live" for part in parts])
    assert {cell.part for cell in cells} == set(parts)
    assert {cell.phase for cell in cells} == {Phase.LIVE}
    assert {("kill", "messaging"), ("away", "kafka")} <= {(cell.kind, cell.part) for cell in cells}
