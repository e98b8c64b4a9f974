"""What differs from one deployment to the next: context of the CDK (``cdk.json``, ``-c name=value``)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

VPC: Final = "10.0.0.0/16"
REPLICATION: Final = 3
"""Of each topic: one replica in each zone."""
MIN_INSYNC: Final = 2
"""A zone may be away; with two away, messages are refused and never lost."""
TARGET_CONNECTIONS: Final = 8_000
"""Of a gateway, on average. It takes up to CHAT_MAX_CONNECTIONS while the next one starts."""


class PlanError(Exception):
    """A context value is wrong or missing; the text names it."""


class Plan(BaseModel):
    """Sizes are of the smallest deployment in ``docs/aws.md``'s table of costs."""

    model_config = ConfigDict(frozen=True)

    certificate: str = Field(pattern=r"^arn:[a-z-]+:acm:[a-z0-9-]+:[0-9]{12}:certificate/.+$")
    """ARN of the certificate, in Certificate Manager, of the name that clients connect to."""
    tag: str = Field(min_length=1)
    """Of the image in the repository that the engines' stack makes."""
    partitions: int = Field(32, ge=1, le=10_000)
    """As CHAT_PARTITIONS: more workers than that would have nothing to do."""
    slots: int = Field(32, ge=6, le=10_000)
    """As CHAT_SLOTS: gateways, and as many again while a deploy starts the new ones."""
    kafka_instance: str = "kafka.m7g.large"
    kafka_gib: int = Field(250, ge=1, le=16_384)
    """Of each broker's disk."""
    redis_node: str = "cache.r7g.large"
    redis_shards: int = Field(3, ge=1, le=500)
    redis_replicas: int = Field(1, ge=1, le=5)
    """Of each shard, in another zone."""
    zones: list[str] = []
    """Three names; empty for the region's first three."""
    operators: str = Field(VPC, pattern=r"^[0-9.]+/[0-9]{1,2}$")
    """Who may open the inspector, as a CIDR block of private addresses, such as a VPN's."""
    alarm_email: str | None = None

    @field_validator("zones", mode="before")
    @classmethod
    def _three_zones(cls, value: str | list[str]) -> list[str]:
        names = [name.strip() for name in value.split(",")] if isinstance(value, str) else value
        if names and len(set(names)) != 3:
            raise ValueError("three different zones are wanted, with commas")
        return names

    @property
    def most_gateways(self) -> int:
        """A rolling deploy has each gateway twice for a while, and each of them needs a slot."""
        return self.slots // 2

    @property
    def redis_nodes(self) -> list[str]:
        """The suffixes ElastiCache gives to the names of a replication group's nodes."""
        return [f"{s:04d}-{n:03d}" for s in range(1, self.redis_shards + 1) for n in range(1, self.redis_replicas + 2)]


def plan_of(context: Mapping[str, object]) -> Plan:
    """The plan in the CDK's context; raises ``PlanError`` naming each wrong value."""
    found = {name: context[name] for name in Plan.model_fields if context.get(name) is not None}
    try:
        return Plan.model_validate(found)
    except ValidationError as error:
        lines = [f"{e['loc'][0]}: {e['msg']}" for e in error.errors()]
        raise PlanError(f"wrong context (cdk.json, or -c name=value; docs/aws.md): {'; '.join(lines)}") from error
