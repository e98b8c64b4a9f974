"""What Prometheus sees is what is documented, and what rules and dashboard ask for exists."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from chat_streams.runtime.metrics import ALL, METRICS, PREFIX, Metrics
from chat_streams.runtime.statistics import Statistics, engines

ROOT = Path(__file__).resolve().parents[3]
MONITORING = ROOT / "docker" / "monitoring"
RULES = sorted(MONITORING.glob("*.rules.yml"))
promtool = pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed")


def rows() -> dict[str, list[str]]:
    """Return the cells of each row of the table of metrics, by name."""
    found = {}
    for line in (ROOT / "docs" / "metrics.md").read_text().splitlines():
        if line.startswith(f"| `{PREFIX}"):
            cells = [cell.strip().strip("`") for cell in line.strip("|").split(" | ")]
            if len(cells) == 5:
                found[cells[0].strip("` ")] = cells
    return found


def scraped(statistics: Statistics, **more: Any) -> dict[tuple[str, str], float]:
    """Return what a scrape would find, by name and labels."""
    text = Metrics(statistics, lambda: more).text().decode()
    return {
        (sample.name, ",".join(sample.labels.values())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def exported() -> set[str]:
    """Return the names that queries may use."""
    names = {"up"}
    for metric in METRICS:
        name = PREFIX + metric.name
        names |= {f"{name}_{part}" for part in ("bucket", "sum", "count")} if metric.kind == "histogram" else {name}
    return names


def rules() -> list[dict[str, Any]]:
    return [rule for path in RULES for group in yaml.safe_load(path.read_text())["groups"] for rule in group["rules"]]


def expressions() -> list[str]:
    """Return all queries of the rules and of the dashboards."""
    found = [rule["expr"] for rule in rules()]
    for path in (MONITORING / "grafana" / "dashboards").glob("*.json"):
        for panel in json.loads(path.read_text())["panels"]:
            found += [target["expr"] for target in panel.get("targets", ())]
    return found


def test_the_table_has_each_metric_and_no_other() -> None:
    documented = rows()
    assert documented.keys() == {PREFIX + metric.name for metric in METRICS}
    for metric in METRICS:
        _, kind, labels, _, text = documented[PREFIX + metric.name]
        assert (kind, re.findall(r"\w+", labels), text) == (metric.kind, list(metric.labels), metric.help)


def test_each_service_shows_what_is_counted_of_it() -> None:
    statistics = Statistics("gateway")
    statistics.gauges = lambda: {"connections": 3.0}
    statistics.counters.update({"accepted": 5, "closed_4010": 2})
    statistics.observe("delivery", 0.02, 4)
    statistics.observe("produce_incoming_messages", 0.003)
    found = scraped(statistics)
    assert found[f"{PREFIX}gateway_connections", ""] == 3
    assert found[f"{PREFIX}gateway_messages_accepted_total", ""] == 5
    assert found[f"{PREFIX}gateway_connections_closed_total", "4010"] == 2
    assert found[f"{PREFIX}gateway_delivery_seconds_bucket", "0.016"] == 0
    assert found[f"{PREFIX}gateway_delivery_seconds_bucket", "0.032"] == 4
    assert found[f"{PREFIX}gateway_delivery_seconds_sum", ""] == pytest.approx(0.08)
    assert found[f"{PREFIX}gateway_produce_seconds_count", "incoming_messages"] == 1
    # To tell the inspector takes nothing away from what Prometheus sees.
    assert statistics.record().gauges["latency_p99_ms"] == 32
    assert "latency_p99_ms" not in statistics.record().gauges
    assert scraped(statistics).items() >= {k: v for k, v in found.items() if k[0].startswith(PREFIX)}.items()


def test_a_worker_shows_zeros_before_anything_happened() -> None:
    engines.clear()
    statistics = Statistics("messaging")
    statistics.agent("incoming_messages")
    found = scraped(statistics)
    assert found[f"{PREFIX}dead_letters_total", "incoming_messages"] == 0
    assert found[f"{PREFIX}engine_errors_total", "redis"] == 0
    assert found[f"{PREFIX}inbox_append_seconds_count", ""] == 0
    statistics.failed("incoming_messages", ValueError(), dead_letter=True)
    assert scraped(statistics)[f"{PREFIX}dead_letters_total", "incoming_messages"] == 1


def test_the_inspector_shows_lag_by_partition() -> None:
    found = scraped(Statistics("inspector"), lag_seconds=[(("history", "incoming_messages", "3"), 1.5)])
    assert found[f"{PREFIX}lag_seconds", "history,3,incoming_messages"] == 1.5


@pytest.mark.parametrize("service", ALL)
def test_names_follow_the_conventions(service: str) -> None:
    for metric in (m for m in METRICS if service in m.services):
        assert metric.name.endswith("_total") == (metric.kind == "counter")
        assert metric.name.endswith("_seconds") or metric.kind != "histogram"
        assert not re.search(r"_(ms|milliseconds|kb|mb)(_|$)", metric.name)


def test_what_rules_and_dashboards_ask_for_exists() -> None:
    recorded = {rule["record"] for rule in rules() if "record" in rule}
    asked = {name for text in expressions() for name in re.findall(rf"\b{PREFIX}\w+|\bconnect_chat:[\w:]+", text)}
    assert len(asked) > 20
    assert asked <= exported() | recorded


def test_each_alert_has_its_part_of_the_runbook() -> None:
    headings = re.findall(r"^## (\w+)$", (ROOT / "docs" / "runbook.md").read_text(), re.M)
    alerts = [rule for rule in rules() if "alert" in rule]
    assert headings == list(dict.fromkeys(rule["alert"] for rule in alerts))
    for rule in alerts:
        assert rule["annotations"]["runbook"].endswith(f"docs/runbook.md#{rule['alert'].lower()}")


@promtool
@pytest.mark.parametrize(
    "command",
    [["check", "config", "prometheus.yml"], ["test", "rules", "alerts.test.yml"]],
    ids=lambda command: " ".join(command),
)
def test_promtool_finds_nothing_wrong(command: list[str]) -> None:
    done = subprocess.run(["promtool", *command], cwd=MONITORING, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
