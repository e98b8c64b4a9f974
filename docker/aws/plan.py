"""The settings that differ between deployments, read from the CDK's context (``cdk.json``, ``-c name=value``)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

VPC: Final = "10.0.0.0/16"
REPLICATION: Final = 3
"""Replicas of each topic: one in each zone."""
MIN_INSYNC: Final = 2
"""Replicas that must confirm a write. One zone may be down; with two down, messages are refused, never lost."""
TARGET_CONNECTIONS: Final = 8_000
"""Average connections of a gateway. It takes up to CHAT_MAX_CONNECTIONS while the next gateway starts."""


class PlanError(Exception):
    """An error for a context value that is wrong or missing; the text names it."""


class Plan(BaseModel):
    """The settings of one deployment. The defaults are the smallest deployment in the cost table of ``docs/aws.md``."""

    model_config = ConfigDict(frozen=True)

    certificate: str = Field(pattern=r"^arn:[a-z-]+:acm:[a-z0-9-]+:[0-9]{12}:certificate/.+$")
    """The ARN, in Certificate Manager, of the certificate for the host name that clients connect to."""
    tag: str = Field(min_length=1)
    """The tag of the image, in the repository that the engines' stack creates."""
    partitions: int = Field(32, ge=1, le=10_000)
    """The value of CHAT_PARTITIONS: workers beyond this number would have nothing to do."""
    slots: int = Field(32, ge=6, le=10_000)
    """The value of CHAT_SLOTS: one for each gateway, and as many again while a deploy starts the new ones."""
    kafka_instance: str = "kafka.m7g.large"
    kafka_gib: int = Field(250, ge=1, le=16_384)
    """GiB of each broker's disk."""
    redis_node: str = "cache.r7g.large"
    redis_shards: int = Field(3, ge=1, le=500)
    redis_replicas: int = Field(1, ge=1, le=5)
    """Replicas of each shard, in other zones."""
    zones: list[str] = []
    """Three zone names, or none to use the region's first three."""
    operators: str = Field(VPC, pattern=r"^[0-9.]+/[0-9]{1,2}$")
    """The CIDR block of private addresses, such as a VPN's, from which the inspector can be opened."""
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
        """The largest number of gateways: a rolling deploy runs each one twice for a while, and each needs a slot."""
        return self.slots // 2

    @property
    def redis_nodes(self) -> list[str]:
        """The suffixes that ElastiCache adds to the names of a replication group's nodes."""
        return [f"{s:04d}-{n:03d}" for s in range(1, self.redis_shards + 1) for n in range(1, self.redis_replicas + 2)]


def plan_of(context: Mapping[str, object]) -> Plan:
    """Return the plan in the CDK's context; raises ``PlanError`` naming each wrong value."""
    found = {name: context[name] for name in Plan.model_fields if context.get(name) is not None}
    try:
        return Plan.model_validate(found)
    except ValidationError as error:
        lines = [f"{e['loc'][0]}: {e['msg']}" for e in error.errors()]
        raise PlanError(f"wrong context (cdk.json, or -c name=value; docs/aws.md): {'; '.join(lines)}") from error
