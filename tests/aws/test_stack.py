"""The stacks for AWS, as CloudFormation would get them: built once, without an account, a network or Docker."""

from __future__ import annotations

import asyncio
import json
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import yaml
from aws_cdk import App
from aws_cdk.assertions import Match, Template

from chat_streams.runtime.settings import Settings
from docker.aws import metrics
from docker.aws.app import build
from docker.aws.plan import Plan, PlanError, plan_of
from docker.aws.services import PORT, USER
from gateway import __main__ as gateway_main
from gateway import app as gateway_app
from gateway import protocol
from tables.chat_history import ChatHistory

ROOT = Path(__file__).resolve().parents[2]
CONTEXT = {
    "certificate": "arn:aws:acm:eu-central-1:111122223333:certificate/5f3a",
    "tag": "1",
    "partitions": "24",
    "slots": "40",
    "alarm_email": "on-call@chat.example",
}
SERVICES = {"gateway", "messaging", "notification", "history", "inspector"}
Resource = dict[str, Any]


@pytest.fixture(scope="module")
def templates() -> dict[str, Template]:
    stacks = build(App(context=CONTEXT))
    return {name: Template.from_stack(stack) for name, stack in zip(("engines", "services"), stacks, strict=True)}


@pytest.fixture(scope="module")
def resources(templates: Mapping[str, Template]) -> dict[str, Resource]:
    """Return the resources of both stacks, by logical id."""
    found: dict[str, Resource] = {}
    for template in templates.values():
        found |= template.to_json()["Resources"]
    return found


def of_type(resources: Mapping[str, Resource], kind: str) -> dict[str, Any]:
    found = {name: r.get("Properties", {}) for name, r in resources.items() if r["Type"] == f"AWS::{kind}"}
    assert found, f"no {kind}"
    return found


def only(resources: Mapping[str, Resource], kind: str) -> Any:
    (properties,) = of_type(resources, kind).values()
    return properties


def tasks(resources: Mapping[str, Resource]) -> dict[str, dict[str, Any]]:
    """Return the containers of each task, by the name of its service."""
    return {
        d["ContainerDefinitions"][0]["Name"]: {c["Name"]: c for c in d["ContainerDefinitions"]}
        for d in of_type(resources, "ECS::TaskDefinition").values()
    }


def environment(container: Mapping[str, Any]) -> dict[str, Any]:
    plain = {entry["Name"]: entry["Value"] for entry in container.get("Environment", [])}
    return plain | {entry["Name"]: entry["ValueFrom"] for entry in container.get("Secrets", [])}


def statements(resources: Mapping[str, Resource]) -> Iterator[tuple[str, Resource]]:
    """Yield the name of each role with each of its policy statements."""
    for name, policy in of_type(resources, "IAM::Policy").items():
        for statement in policy["PolicyDocument"]["Statement"]:
            yield name, statement
    for role in of_type(resources, "IAM::Role").values():
        assert "Policies" not in role


def many(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def allowed(resources: Mapping[str, Resource], service: str) -> set[str]:
    """Return the actions on the data of the table that a task of a service may do."""
    return {
        action
        for name, statement in statements(resources)
        if f"{service.capitalize()}TaskTaskRole" in name
        for action in many(statement["Action"])
        if action.startswith("dynamodb:")
    }


# The engines


def test_kafka_keeps_what_it_acknowledged(resources: Mapping[str, Resource]) -> None:
    cluster = only(resources, "MSK::Cluster")
    assert cluster["NumberOfBrokerNodes"] == len(cluster["BrokerNodeGroupInfo"]["ClientSubnets"]) == 3
    properties = only(resources, "MSK::Configuration")["ServerProperties"].splitlines()
    assert {
        "default.replication.factor=3",
        "min.insync.replicas=2",
        "auto.create.topics.enable=false",
        "unclean.leader.election.enable=false",
    } <= set(properties)
    for service, containers in tasks(resources).items():
        found = environment(containers[service])
        assert (found["CHAT_REPLICATION"], found["CHAT_MIN_INSYNC"]) == ("3", "2")


def test_kafka_requires_tls_and_a_password(resources: Mapping[str, Resource]) -> None:
    cluster = only(resources, "MSK::Cluster")
    assert cluster["EncryptionInfo"]["EncryptionInTransit"] == {"ClientBroker": "TLS", "InCluster": True}
    assert "DataVolumeKMSKeyId" in cluster["EncryptionInfo"]["EncryptionAtRest"]
    assert cluster["ClientAuthentication"] == {
        "Sasl": {"Scram": {"Enabled": True}},
        "Unauthenticated": {"Enabled": False},
    }
    (login,) = only(resources, "MSK::BatchScramSecret")["SecretArnList"]
    secret = resources[login["Ref"]]["Properties"]
    # MSK accepts only secrets with this prefix and a customer-managed key.
    assert secret["Name"].startswith("AmazonMSK_")
    assert resources[secret["KmsKeyId"]["Fn::GetAtt"][0]]["Type"] == "AWS::KMS::Key"
    assert secret["GenerateSecretString"]["GenerateStringKey"] == "password"
    assert "username" in json.loads(secret["GenerateSecretString"]["SecretStringTemplate"])


def test_redis_is_encrypted_has_replicas_and_evicts_no_inbox(resources: Mapping[str, Resource]) -> None:
    redis = only(resources, "ElastiCache::ReplicationGroup")
    assert redis["TransitEncryptionEnabled"] is redis["AtRestEncryptionEnabled"] is True
    assert redis["TransitEncryptionMode"] == "required"
    assert redis["AutomaticFailoverEnabled"] is redis["MultiAZEnabled"] is True
    assert redis["NumNodeGroups"] >= 3
    assert redis["ReplicasPerNodeGroup"] >= 1
    assert redis["UserGroupIds"]
    parameters = only(resources, "ElastiCache::ParameterGroup")["Properties"]
    assert parameters == {"cluster-enabled": "yes", "maxmemory-policy": "noeviction"}
    password = json.dumps(only(resources, "ElastiCache::User")["AuthenticationMode"]["Passwords"])
    assert "resolve:secretsmanager" in password


class _NoTable:
    """A stand-in for DynamoDB without tables, which records the table that is created."""

    class exceptions:  # noqa: N801 - as boto3 calls it
        class ResourceNotFoundException(Exception):
            pass

        class ResourceInUseException(Exception):
            pass

    made: dict[str, Any]

    async def describe_table(self, **_: Any) -> None:
        raise self.exceptions.ResourceNotFoundException

    async def create_table(self, **arguments: Any) -> None:
        self.made = arguments

    def get_waiter(self, _: str) -> _NoTable:
        return self

    async def wait(self, **_: Any) -> None:
        pass


def test_the_table_is_the_one_that_the_code_makes(resources: Mapping[str, Resource]) -> None:
    history, db = ChatHistory(Settings()), _NoTable()
    history._client = db  # type: ignore[assignment]
    asyncio.run(history.create())
    table = only(resources, "DynamoDB::Table")
    for name in ("KeySchema", "GlobalSecondaryIndexes", "BillingMode"):
        assert table[name] == db.made[name]
    by_name = {a["AttributeName"]: a for a in db.made["AttributeDefinitions"]}
    assert {a["AttributeName"]: a for a in table["AttributeDefinitions"]} == by_name


def test_the_table_can_be_restored(resources: Mapping[str, Resource]) -> None:
    table = only(resources, "DynamoDB::Table")
    assert table["PointInTimeRecoverySpecification"] == {"PointInTimeRecoveryEnabled": True}
    assert table["SSESpecification"]["SSEEnabled"] is True
    assert table["DeletionProtectionEnabled"] is True
    for kind in ("AWS::DynamoDB::Table", "AWS::MSK::Cluster", "AWS::KMS::Key"):
        assert all(r["DeletionPolicy"] == "Retain" for r in resources.values() if r["Type"] == kind)


# The network


def test_data_is_not_public(resources: Mapping[str, Resource]) -> None:
    cluster = only(resources, "MSK::Cluster")["BrokerNodeGroupInfo"]
    assert cluster["ConnectivityInfo"]["PublicAccess"]["Type"] == "DISABLED"
    subnets = [*cluster["ClientSubnets"], *only(resources, "ElastiCache::SubnetGroup")["SubnetIds"]]
    tables = {
        p["SubnetId"]["Ref"]: p["RouteTableId"]["Ref"]
        for p in of_type(resources, "EC2::SubnetRouteTableAssociation").values()
    }
    routes = {p["RouteTableId"]["Ref"] for p in of_type(resources, "EC2::Route").values()}
    for subnet in subnets:
        assert tables[subnet["Ref"]] not in routes, "a subnet with data has a way out"


def test_only_the_public_balancer_is_open_to_all(resources: Mapping[str, Resource]) -> None:
    public = [
        b for b in of_type(resources, "ElasticLoadBalancingV2::LoadBalancer").values() if b["Scheme"] != "internal"
    ]
    assert len(public) == 1
    open_ports = {
        (name, rule["FromPort"])
        for name, group in of_type(resources, "EC2::SecurityGroup").items()
        for rule in group.get("SecurityGroupIngress", [])
        if rule.get("CidrIp") == "0.0.0.0/0"
    }
    assert {port for _, port in open_ports} == {80, 443}
    assert len({name for name, _ in open_ports}) == 1
    # All other rules are from one security group to another.
    for rule in of_type(resources, "EC2::SecurityGroupIngress").values():
        assert "SourceSecurityGroupId" in rule
        assert rule["FromPort"] == rule["ToPort"]
    for service in of_type(resources, "ECS::Service").values():
        assert service["NetworkConfiguration"]["AwsvpcConfiguration"]["AssignPublicIp"] == "DISABLED"


def test_clients_are_served_over_tls_and_see_only_the_websocket(templates: Mapping[str, Template]) -> None:
    services = templates["services"]
    kind = "AWS::ElasticLoadBalancingV2::Listener"
    listeners = [found["Properties"] for found in services.find_resources(kind).values()]
    assert sorted(listener["Protocol"] for listener in listeners) == ["HTTP", "HTTPS", "HTTPS"]
    for listener in listeners:
        (action,) = listener["DefaultActions"]
        if listener["Protocol"] == "HTTP":
            assert action["RedirectConfig"]["Protocol"] == "HTTPS"
        else:
            assert "TLS13" in listener["SslPolicy"]
    services.has_resource_properties(
        "AWS::ElasticLoadBalancingV2::ListenerRule",
        {"Conditions": [{"Field": "path-pattern", "PathPatternConfig": {"Values": [protocol.PATH]}}]},
    )
    services.has_resource_properties(
        kind, {"DefaultActions": [{"Type": "fixed-response", "FixedResponseConfig": Match.any_value()}]}
    )


def test_a_silent_connection_outlives_its_heartbeats(resources: Mapping[str, Resource]) -> None:
    for balancer in of_type(resources, "ElasticLoadBalancingV2::LoadBalancer").values():
        attributes = {a["Key"]: a["Value"] for a in balancer["LoadBalancerAttributes"]}
        assert attributes["idle_timeout.timeout_seconds"] == "300"
        assert 2 * Settings().heartbeat <= 300
        assert attributes["deletion_protection.enabled"] == "true"


def test_an_engine_that_is_away_for_minutes_does_not_end_the_gateways(resources: Mapping[str, Resource]) -> None:
    for target in of_type(resources, "ElasticLoadBalancingV2::TargetGroup").values():
        assert target["HealthCheckPath"] == "/readyz"
        assert target["HealthCheckIntervalSeconds"] * target["UnhealthyThresholdCount"] >= 300
        assert target["HealthCheckTimeoutSeconds"] > 2 * Settings().engine_timeout
    for service in SERVICES:
        assert "/healthz" in json.dumps(tasks(resources)[service][service]["HealthCheck"]["Command"])


# The tasks


def test_all_services_are_there_and_the_one_that_makes_the_topics(resources: Mapping[str, Resource]) -> None:
    assert set(tasks(resources)) == SERVICES | {"operator"}
    assert {s["ServiceName"] for s in of_type(resources, "ECS::Service").values()} == SERVICES


def test_commands_are_those_of_compose(resources: Mapping[str, Resource]) -> None:
    compose = yaml.safe_load((ROOT / "docker/compose.yaml").read_text())["services"]
    for service, containers in tasks(resources).items():
        command = containers[service]["Command"]
        # Under Compose, Prometheus scrapes from another container; here the collector is in the same task.
        wanted = compose["topics" if service == "operator" else service]["command"]
        if service != "inspector":
            wanted = wanted.replace("0.0.0.0", "127.0.0.1")  # noqa: S104
        assert command == shlex.split(wanted)
        module = command[command.index("-A" if command[0] == "faust" else "-m") + 1]
        assert find_spec(module) is not None


def test_the_user_is_the_one_of_the_image(resources: Mapping[str, Resource]) -> None:
    assert f"\nUSER {USER}\n" in (ROOT / "docker/Dockerfile").read_text()
    for containers in tasks(resources).values():
        for container in containers.values():
            assert container["User"] == USER
            assert container["ReadonlyRootFilesystem"] is True
            assert container["LinuxParameters"]["Capabilities"]["Drop"] == ["ALL"]
            assert not container.get("Privileged")


def test_a_task_has_time_to_stop_in_order(resources: Mapping[str, Resource]) -> None:
    drain = gateway_app.DRAIN_SECONDS + gateway_main.SHUTDOWN_SECONDS + Settings().produce_timeout
    for service, containers in tasks(resources).items():
        assert drain < containers[service]["StopTimeout"] <= 120


def test_variables_are_settings(resources: Mapping[str, Resource]) -> None:
    known = {f"CHAT_{name.upper()}" for name in Settings.model_fields}
    for service, containers in tasks(resources).items():
        found = environment(containers[service])
        assert set(found) - known <= {"AWS_DEFAULT_REGION", "APP_DATADIR"}
        Settings(partitions=int(found["CHAT_PARTITIONS"]), slots=int(found["CHAT_SLOTS"]))
        assert found["CHAT_KAFKA_TLS"] == "true"
        if "CHAT_REDIS" in found:
            assert "rediss://" in json.dumps(found["CHAT_REDIS"])
    assert set(environment(tasks(resources)["gateway"]["collector"])) == {"AOT_CONFIG_CONTENT"}


def test_no_password_is_in_a_template(resources: Mapping[str, Resource]) -> None:
    for service, containers in tasks(resources).items():
        plain = {entry["Name"] for entry in containers[service]["Environment"]}
        assert not [name for name in plain if re.search("PASSWORD|SECRET", name)]
        secrets = {entry["Name"] for entry in containers[service]["Secrets"]}
        assert ("CHAT_JWT_SECRET" in secrets) == (service in ("gateway", "inspector"))
        assert ("CHAT_REDIS_PASSWORD" in secrets) == (service != "history")
    for secret in of_type(resources, "SecretsManager::Secret").values():
        assert "SecretString" not in secret
        assert "KmsKeyId" in secret


def test_a_log_is_kept_for_a_limited_time(resources: Mapping[str, Resource]) -> None:
    for group in of_type(resources, "Logs::LogGroup").values():
        assert group["RetentionInDays"] <= 30


# Roles


def test_no_role_may_do_everything(resources: Mapping[str, Resource]) -> None:
    everywhere = set()
    for _, statement in statements(resources):
        for action in many(statement["Action"]):
            assert action != "*"
            assert not action.endswith(":*")
            if statement["Resource"] == "*":
                everywhere.add(action)
    # This action cannot be narrowed down: a token for the registry names no repository.
    assert everywhere == {"ecr:GetAuthorizationToken"}
    managed = [many(role.get("ManagedPolicyArns", [])) for role in of_type(resources, "IAM::Role").values()]
    names = re.findall(r"policy/[\w/-]+", json.dumps(managed))
    # This role belongs to the function that asks MSK for its bootstrap servers: it writes a log.
    assert names == ["policy/service-role/AWSLambdaBasicExecutionRole"]


def test_each_service_may_do_to_the_table_what_its_code_does(resources: Mapping[str, Resource]) -> None:
    assert allowed(resources, "messaging") == allowed(resources, "notification") == set()
    assert allowed(resources, "history") == {"dynamodb:BatchWriteItem"}
    assert allowed(resources, "gateway") == {"dynamodb:Query"}
    assert allowed(resources, "inspector") == {"dynamodb:Query", "dynamodb:BatchGetItem"}
    assert allowed(resources, "operator") == {"dynamodb:DescribeTable", "dynamodb:Query", "dynamodb:BatchGetItem"}


# Scaling, metrics and alarms


def test_there_is_never_a_worker_without_partition_or_a_gateway_without_slot(resources: Mapping[str, Resource]) -> None:
    partitions, slots = int(CONTEXT["partitions"]), int(CONTEXT["slots"])
    limits = {}
    for target in of_type(resources, "ApplicationAutoScaling::ScalableTarget").values():
        limits[re.findall("Services([A-Z][a-z]+)Service", json.dumps(target["ResourceId"]))[0].lower()] = target[
            "MaxCapacity"
        ]
    assert set(limits) == SERVICES - {"inspector"}
    # A rolling deploy starts the new gateways before it stops the old ones.
    assert 2 * limits.pop("gateway") <= slots
    assert set(limits.values()) == {partitions}
    services = {s["ServiceName"]: s for s in of_type(resources, "ECS::Service").values()}
    # With a count in the template, each deploy would stop the tasks that scaling had added.
    assert {name for name, s in services.items() if "DesiredCount" in s} == {"inspector"}


def test_scaling_is_by_connections_and_by_lag(resources: Mapping[str, Resource]) -> None:
    policies = of_type(resources, "ApplicationAutoScaling::ScalingPolicy").values()
    (by_connections,) = [
        p["TargetTrackingScalingPolicyConfiguration"] for p in policies if p["PolicyType"].startswith("Target")
    ]
    assert by_connections["CustomizedMetricSpecification"]["MetricName"] == metrics.CONNECTIONS
    assert by_connections["TargetValue"] < Settings().max_connections
    assert len([p for p in policies if p["PolicyType"] == "StepScaling"]) == 2 * 3


def test_the_collector_scrapes_the_service_beside_it(resources: Mapping[str, Resource]) -> None:
    for service in SERVICES:
        collector = tasks(resources)[service]["collector"]
        assert collector["Essential"] is False
        text = json.dumps(environment(collector)["AOT_CONFIG_CONTENT"])
        port = Settings().metrics_port if service == "gateway" else PORT
        assert f"127.0.0.1:{port}" in text
        for name in (metrics.CONNECTIONS, metrics.LAG, metrics.DEAD_LETTERS, metrics.AUDIT_CLEAN):
            assert name in text
        # The collector would expand a "$" as a variable.
        assert "$" not in text.replace("${", "").replace("AWS::", "")


@pytest.mark.parametrize(
    "metric",
    [
        *(metrics.LAG, metrics.DEAD_LETTERS, metrics.AUDIT_CLEAN, metrics.CONNECTIONS),
        *("UnHealthyHostCount", "HealthyHostCount"),
        *("KafkaDataLogsDiskUsed", "OfflinePartitionsCount", "UnderMinIsrPartitionCount"),
        *("DatabaseMemoryUsagePercentage", "Evictions", "EngineCPUUtilization"),
        *("WriteThrottleEvents", "ReadThrottleEvents"),
    ],
)
def test_there_is_an_alarm(resources: Mapping[str, Resource], metric: str) -> None:
    found = [
        a
        for a in of_type(resources, "CloudWatch::Alarm").values()
        if a.get("MetricName") == metric and "AlarmName" in a
    ]
    assert found
    assert all(alarm["AlarmActions"] for alarm in found)


def test_each_broker_and_each_node_has_its_alarms(resources: Mapping[str, Resource]) -> None:
    alarms = of_type(resources, "CloudWatch::Alarm").values()
    where = [
        {d["Name"]: d["Value"] for d in a["Dimensions"]}
        for a in alarms
        if a.get("MetricName") in ("Evictions", "KafkaDataLogsDiskUsed")
    ]
    redis = only(resources, "ElastiCache::ReplicationGroup")
    nodes = {w["CacheClusterId"] for w in where if "CacheClusterId" in w}
    assert len(nodes) == redis["NumNodeGroups"] * (redis["ReplicasPerNodeGroup"] + 1)
    assert {w["Broker ID"] for w in where if "Broker ID" in w} == {"1", "2", "3"}
    assert only(resources, "SNS::Topic")["KmsMasterKeyId"]


# Context, and what CloudFormation says


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("certificate", "chat.example"),
        ("certificate", None),
        ("tag", None),
        ("partitions", "many"),
        ("slots", "2"),
        ("zones", "eu-central-1a,eu-central-1b"),
        ("operators", "everybody"),
    ],
)
def test_a_wrong_context_is_one_clear_error(name: str, value: str | None) -> None:
    with pytest.raises(PlanError, match=rf"^[^\n]*\b{name}: [^\n]*$"):
        plan_of({**CONTEXT, name: value})


def test_a_plan_is_of_three_zones() -> None:
    assert plan_of({**CONTEXT, "zones": "eu-central-1a, eu-central-1b, eu-central-1c"}).zones[2] == "eu-central-1c"
    assert isinstance(plan_of(CONTEXT), Plan)


def test_cfn_lint_finds_nothing(templates: Mapping[str, Template], tmp_path: Path) -> None:
    for name, template in templates.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(template.to_json()))
    # W3005: the function that the CDK adds declares twice that it depends on its role.
    program = Path(sys.executable).with_name("cfn-lint")
    command: list[str | Path] = [
        program,
        "--ignore-checks",
        "W3005",
        "--regions",
        "us-east-1",
        "--",
        *tmp_path.iterdir(),
    ]
    found = subprocess.run(command, capture_output=True, text=True)
    assert (found.returncode, found.stdout) == (0, ""), found.stdout + found.stderr
