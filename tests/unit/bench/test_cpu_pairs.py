from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from rich.console import Console

from bench import cpu_pairs
from bench.cpu_pairs import a_message, figures, order, paired, ratio, run_in, summary, switches, switches_of, table


def run(ms: float, **more: Any) -> dict[str, Any]:
    step = {
        "cpu_ms": {"kafka": ms, "redis": 0.0, "all servers": ms},
        "switches": {"all servers": 9.0},
        "p50": 8.0,
        "p99": 20.0,
    }
    return {"version": "abc", "rates": {"50": step}, **more}


def test_each_pair_begins_with_what_the_last_one_ended_with() -> None:
    assert order(1) == "AB"
    assert order(4) == "ABBAABBA"


def test_a_ratio_is_the_median_of_the_means_of_any_two() -> None:
    assert ratio([(2.0, 1.0)]).estimate == pytest.approx(0.5)
    # Of 0.25, 1 and 4 and their geometric means 0.5, 1 and 2.
    assert ratio([(4.0, 1.0), (1.0, 1.0), (1.0, 4.0)]).estimate == pytest.approx(1.0)


def test_an_interval_is_that_of_signed_ranks() -> None:
    assert ratio([(1.0, 2.0)] * 5).interval is None
    assert ratio([(1.0, 2.0**n) for n in range(1, 7)]).interval == pytest.approx((2.0, 64.0))
    # With 8 it goes from the 4th to the 33rd of 36 means: as wilcox.test of R has it.
    exponents = [0.0, 1.0, 3.0, 7.0, 12.0, 20.0, 33.0, 54.0]
    means = sorted((a + b) / 2 for n, a in enumerate(exponents) for b in exponents[n:])
    assert ratio([(1.0, 2.0**n) for n in exponents]).interval == pytest.approx((2.0 ** means[3], 2.0 ** means[32]))


def test_one_disturbed_run_hardly_moves_a_ratio() -> None:
    quiet = [(10.0, 8.0)] * 7
    assert ratio([*quiet, (10.0, 80.0)]).estimate == pytest.approx(0.8)


def test_context_switches_of_a_thread_are_of_both_kinds() -> None:
    status = "Name:\tkafka: io\nThreads:\t80\nvoluntary_ctxt_switches:\t150\nnonvoluntary_ctxt_switches:\t7\n"
    assert switches_of(status) == 157


def test_context_switches_of_a_process_are_those_of_its_threads() -> None:
    found = switches({"this": os.getpid(), "gone": 2**22 + 1})
    assert found["this"][os.getpid()] > 0
    assert "gone" not in found


def test_the_cost_of_a_message_leaves_out_the_client() -> None:
    step = {
        "messages": 500,
        "seconds": 10.0,
        "p50": 8.0,
        "p99": 20.0,
        "cpu": {"kafka": 2.5, "redis": 0.5, "client": 9.0},
    }
    found = a_message(step, {"kafka": {1: 100, 2: 50}}, {"redis": {9: 50}, "kafka": {1: 1_100, 3: 250}})
    assert found["cpu_ms"] == pytest.approx({"kafka": 5.0, "redis": 1.0, "all servers": 6.0})
    # A thread that ended is not counted, one that began is.
    assert found["switches"] == pytest.approx({"kafka": 2.5, "redis": 0.1, "all servers": 2.6})
    assert list(found["switches"]) == ["kafka", "redis", "all servers"]


def test_figures_are_by_work_and_name() -> None:
    assert figures(run(3.0, throughput={"store": 25_000.0})) == {
        ("50/s", "CPU, ms: kafka"): 3.0,
        ("50/s", "CPU, ms: redis"): 0.0,
        ("50/s", "CPU, ms: all servers"): 3.0,
        ("50/s", "context switches: all servers"): 9.0,
        ("50/s", "latency, ms: p50"): 8.0,
        ("50/s", "latency, ms: p99"): 20.0,
        ("store", "messages/s"): 25_000.0,
    }


def test_a_pair_of_which_a_run_failed_is_left_out() -> None:
    first, second, third = run(1.0), run(2.0), run(3.0)
    assert paired([("A", first), ("B", second), ("B", third), ("A", None)]) == [(first, second)]
    assert paired([("B", second), ("A", first)]) == [(first, second)]


def test_a_table_has_medians_ratio_and_interval() -> None:
    screen = Console(width=120)
    with screen.capture() as capture:
        screen.print(table([(run(4.0 + n), run((4.0 + n) / 2)) for n in range(6)]))
    text = capture.get()
    (kafka,) = [line for line in text.splitlines() if "kafka" in line]
    assert [cell.strip() for cell in kafka.split("│")[1:-1]] == [
        *("50/s", "CPU, ms: kafka", "6.5", "3.25"),
        *("0.500", "0.500 - 0.500"),
    ]
    (redis,) = [line for line in text.splitlines() if "redis" in line]
    assert [cell.strip() for cell in redis.split("│")[3:-1]] == ["0", "0", "", ""]


def test_a_run_is_of_a_checkout_with_its_own_python_and_packages(tmp_path: Path) -> None:
    python = tmp_path / ".venv/bin/python"
    python.parent.mkdir(parents=True)
    python.write_text('#!/bin/sh\nprintf \'{"path":"%s","folder":"%s","last":"%s"}\' "$PYTHONPATH" "$PWD" "$6"\n')
    python.chmod(0o755)
    folder = str(tmp_path)
    assert run_in(tmp_path, ["--throughput"]) == {"path": folder, "folder": folder, "last": "--throughput"}
    python.write_text("#!/bin/sh\nexit 1\n")
    assert run_in(tmp_path, []) is None


def test_all_runs_are_saved_and_a_failed_one_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("a", "b"):
        (tmp_path / name / ".venv/bin").mkdir(parents=True)
        (tmp_path / name / ".venv/bin/python").touch()
    results = iter([run(4.0), run(2.0), None, run(4.0)])
    asked: list[tuple[str, list[str]]] = []

    def fake(checkout: Path, arguments: list[str]) -> Any:
        asked.append((checkout.name, arguments))
        return next(results)

    monkeypatch.setattr(cpu_pairs, "run_in", fake)
    saved = tmp_path / "pairs.json"
    options = ["--pairs", "2", "--rates", "50", "--seconds", "5", "--json", str(saved)]
    done = CliRunner().invoke(cpu_pairs.main, [str(tmp_path / "a"), str(tmp_path / "b"), *options])
    assert done.exit_code == 1
    assert [name for name, _ in asked] == ["a", "b", "b", "a"]
    assert asked[0][1] == ["--rates", "50", "--seconds", "5"]
    assert [side for side, _ in json.loads(saved.read_text())["runs"]] == ["A", "B", "B", "A"]
    assert "run 3 of 4, B: failed" in done.output
    assert "1 of 2 pairs failed" in done.output
    assert "0.500" in done.output


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ([], "name two checkouts"),
        ([".", "."], "no virtual environment"),
        (["--rates", "50,x"], "not a list of numbers"),
    ],
)
def test_a_call_that_cannot_work_is_refused(
    arguments: list[str], error: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(cpu_pairs.main, arguments)
    assert done.exit_code == 2
    assert error in done.output


def test_a_summary_has_one_line() -> None:
    text = summary(run(3.0, throughput={"store": 25_000.0}))
    assert text == "abc; 50/s 3.00 ms, p50 8.0, p99 20.0 ms; store 25,000/s"
