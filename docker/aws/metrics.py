"""Metrics from a service's ``/metrics`` to CloudWatch: the configuration of its collector, and the metrics' names.

The collector is the AWS Distro for OpenTelemetry. It writes log lines in CloudWatch's embedded metric format, which
CloudWatch turns into metrics; its exporter is ``awsemf`` of opentelemetry-collector-contrib.
"""

from __future__ import annotations

from typing import Any, Final

import aws_cdk as cdk
from aws_cdk import aws_cloudwatch as cloudwatch

COLLECTOR: Final = "public.ecr.aws/aws-observability/aws-otel-collector:v0.45.1"
NAMESPACE: Final = "ConnectChat"
INTERVAL_S: Final = 30

CONNECTIONS: Final = "connect_chat_gateway_connections"
DEAD_LETTERS: Final = "connect_chat_dead_letters_total"
LAG: Final = "connect_chat_lag_seconds"
AUDIT_CLEAN: Final = "connect_chat_audit_clean"

_DIMENSION: Final = {CONNECTIONS: "service", DEAD_LETTERS: "service", LAG: "group", AUDIT_CLEAN: "service"}
"""The only dimension of each metric. There are few values, since each one is a metric that costs money."""


def collector(service: str, port: int, log_group: str, region: str) -> dict[str, Any]:
    """Return the configuration of the collector in a service's task; ``log_group`` is the name of a log group."""
    return {
        "receivers": {
            "prometheus": {
                "config": {
                    "scrape_configs": [
                        {
                            "job_name": service,
                            "scrape_interval": f"{INTERVAL_S}s",
                            "static_configs": [{"targets": [f"127.0.0.1:{port}"], "labels": {"service": service}}],
                            "metric_relabel_configs": [
                                {"source_labels": ["__name__"], "regex": "|".join(_DIMENSION), "action": "keep"}
                            ],
                        }
                    ]
                }
            }
        },
        "processors": {"batch": {"timeout": "10s"}},
        "exporters": {
            "awsemf": {
                "region": region,
                "namespace": NAMESPACE,
                "log_group_name": log_group,
                "log_stream_name": service,
                "dimension_rollup_option": "NoDimensionRollup",
                # A counter is exported as its increase since the last scrape; the value of the first scrape counts,
                # too.
                "retain_initial_value_of_delta_metric": True,
                "metric_declarations": [
                    # No "$" at the end: the collector would expand it as a variable.
                    {"dimensions": [[dimension]], "metric_name_selectors": [f"^{name}"]}
                    for name, dimension in _DIMENSION.items()
                ],
            }
        },
        "service": {
            "pipelines": {"metrics": {"receivers": ["prometheus"], "processors": ["batch"], "exporters": ["awsemf"]}}
        },
    }


def metric(name: str, value: str, statistic: str, minutes: int = 1) -> cloudwatch.Metric:
    """Return one of the metrics above for one ``value`` of its dimension."""
    return cloudwatch.Metric(
        namespace=NAMESPACE,
        metric_name=name,
        dimensions_map={_DIMENSION[name]: value},
        statistic=statistic,
        period=cdk.Duration.minutes(minutes),
    )
