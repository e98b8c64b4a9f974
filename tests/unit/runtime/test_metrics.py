"""The documented metrics are those that Prometheus sees, and all that rules and dashboard query exist."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client import CollectorRegistry, Histogram, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from chat_streams.runtime import retry
from chat_streams.runtime.metrics import BUCKETS, PREFIX, REGISTRY, Exposition, WeightedHistogram
from chat_streams.runtime.statistics import COUNTERS, GAUGES

ROOT = Path(__file__).resolve().parents[3]
MONITORING = ROOT / "docker" / "monitoring"
RULES = sorted(MONITORING.glob("*.rules.yml"))
SERVICES = {
    "all": ("gateway", "messaging", "notification", "history", "inspector"),
    "workers": ("messaging", "notification", "history"),
}
"""Names of the table of metrics for several services."""
EXPOSITIONS = {
    "gateway": ("Exposition(REGISTRY)", "import gateway.__main__"),
    "messaging": ("app.exposition", "from chat_streams.messaging import app"),
    "notification": ("app.exposition", "from chat_streams.notification import app"),
    "history": ("app.exposition", "from chat_streams.history import app"),
    "inspector": ("app.exposition", "from chat_streams.inspector import app"),
}
"""The object behind ``/metrics`` of each service, and what makes it."""
PROGRAM = """
import json
from prometheus_client import CollectorRegistry
from chat_streams.runtime.metrics import REGISTRY, Exposition
{imports}

def metrics(registry):
    for collector in registry._collector_to_names:
        if isinstance(collector, CollectorRegistry):
            yield from metrics(collector)
        else:
            for family in collector.collect():
                yield collector, family

found = {{}}
for collector, family in metrics({exposition}._registry):
    name = family.name + ("_total" if family.type == "counter" else "")
    if name.startswith("connect_chat_"):
        assert name not in found, name
        labels = getattr(collector, "_labelnames", getattr(family, "_labelnames", ()))
        found[name] = [family.type, list(labels), family.documentation]
print(json.dumps(found))
"""
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


def shown(service: str) -> dict[str, list[Any]]:
    """Return type, labels and help of each metric that a process of a service shows, by name."""
    exposition, imports = EXPOSITIONS[service]
    command = [sys.executable, "-c", PROGRAM.format(imports=imports, exposition=exposition)]
    environment = os.environ | {"CHAT_JWT_SECRET": "x" * 32}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found: dict[str, list[Any]] = json.loads(done.stdout)
    return found


def exported() -> set[str]:
    """Return the metric names that queries may use."""
    names = {"up"}
    for name, (_, kind, *_) in rows().items():
        names |= {f"{name}_{part}" for part in ("bucket", "sum", "count")} if kind == "histogram" else {name}
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


@pytest.mark.parametrize("service", EXPOSITIONS)
def test_a_service_shows_the_metrics_of_the_table_and_no_other(service: str) -> None:
    documented = {}
    for name, (_, kind, labels, origin, text) in rows().items():
        if service in SERVICES.get(origin, re.split(", ", origin)):
            documented[name] = [kind, re.findall(r"\w+", labels), text]
    assert shown(service) == documented


def test_each_row_of_the_table_names_services() -> None:
    origins = {name for _, _, _, origin, _ in rows().values() for name in origin.split(", ")}
    assert origins - SERVICES.keys() == {"gateway", "messaging", "notification", "history", "inspector"}


def test_engines_are_shown_with_zeros_before_anything_happened() -> None:
    assert retry.ENGINE_ERRORS
    text = Exposition(REGISTRY).text().decode()
    engines = {
        sample.labels["engine"]
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name == f"{PREFIX}engine_errors_total"
    }
    assert engines == {"dynamodb", "kafka", "redis"}


def test_names_follow_the_conventions() -> None:
    for name, (_, kind, *_) in rows().items():
        assert name.endswith("_total") == (kind == "counter")
        assert name.endswith("_seconds") or kind != "histogram"
        assert not re.search(r"_(ms|milliseconds|kb|mb)(_|$)", name)


def test_a_record_of_service_stats_is_made_of_metrics_that_exist() -> None:
    assert {PREFIX + name for name in (*COUNTERS, *GAUGES)} <= rows().keys()
    assert f"{PREFIX}gateway_delivery_seconds" in rows()
    agents = ("agent_records_total", "agent_errors_total", "dead_letters_total", "agent_batch_seconds")
    assert {PREFIX + name for name in agents} <= rows().keys()


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


def test_a_weighted_histogram_reads_as_many_single_observations() -> None:
    ours, theirs = CollectorRegistry(), CollectorRegistry()
    weighted = WeightedHistogram("connect_chat_x_seconds", "What it means.", ours)
    single = Histogram("connect_chat_x_seconds", "What it means.", buckets=BUCKETS, registry=theirs)
    assert generate_latest(ours) == generate_latest(theirs)
    # At a bound, between two, below the first, above the last.
    for value, times in ((BUCKETS[3], 1), (0.02, 4), (0.0, 2), (1_000.0, 3)):
        weighted.observe(value, times)
        for _ in range(times):
            single.observe(value)
    assert generate_latest(ours) == generate_latest(theirs)


def test_a_name_is_taken_once() -> None:
    registry = CollectorRegistry()
    WeightedHistogram("connect_chat_x_seconds", "", registry)
    with pytest.raises(ValueError, match="Duplicated"):
        Histogram("connect_chat_x_seconds", "", registry=registry)


@promtool
@pytest.mark.parametrize(
    "command",
    [["check", "config", "prometheus.yml"], ["test", "rules", "alerts.test.yml"]],
    ids=lambda command: " ".join(command),
)
def test_promtool_finds_nothing_wrong(command: list[str]) -> None:
    done = subprocess.run(["promtool", *command], cwd=MONITORING, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
