"""CloudWatch alarms, sent to one SNS topic. The runbook says what each means and what to do."""

from __future__ import annotations

import itertools

import aws_cdk as cdk
from aws_cdk import aws_cloudwatch as cloudwatch
from aws_cdk import aws_cloudwatch_actions as actions
from aws_cdk import aws_iam as iam
from aws_cdk import aws_sns as sns
from aws_cdk import aws_sns_subscriptions as subscriptions
from constructs import Construct

from chat_streams.runtime.settings import Settings
from docker.aws import metrics
from docker.aws.engines import Engines
from docker.aws.plan import Plan
from docker.aws.services import FEWEST, GATEWAY, INSPECTOR, WORKERS, Services
from tables.chat_history import INDEX

ABOVE = cloudwatch.ComparisonOperator.GREATER_THAN_THRESHOLD
BELOW = cloudwatch.ComparisonOperator.LESS_THAN_THRESHOLD
BROKERS = ("1", "2", "3")


class Alarms(Construct):
    """All alarms and the SNS topic they are sent to."""

    def __init__(self, scope: Construct, plan: Plan, engines: Engines, services: Services) -> None:
        super().__init__(scope, "Alarms")
        self.topic = sns.Topic(self, "Topic", master_key=engines.key, enforce_ssl=True)
        engines.key.add_to_resource_policy(
            iam.PolicyStatement(
                principals=[iam.ServicePrincipal("cloudwatch.amazonaws.com")],
                actions=["kms:Decrypt", "kms:GenerateDataKey*"],
                resources=["*"],
            )
        )
        if plan.alarm_email:
            self.topic.add_subscription(subscriptions.EmailSubscription(plan.alarm_email))
        self._add_services(services)
        self._add_kafka(engines)
        self._add_redis(plan)
        self._add_dynamodb(engines)

    def _add_services(self, services: Services) -> None:
        for part in WORKERS:
            # Lag is not reported while the inspector or its metrics collector is down, so missing data raises the
            # alarm, too.
            lag = metrics.metric(metrics.LAG, part.name, "Maximum")
            self._alarm(
                f"{part.name.capitalize()}Lag", lag, 60, minutes=5, silence=cloudwatch.TreatMissingData.BREACHING
            )
            letters = metrics.metric(metrics.DEAD_LETTERS, part.name, "Sum")
            self._alarm(f"{part.name.capitalize()}DeadLetters", letters, 0)
        self._alarm("AuditNotClean", metrics.metric(metrics.AUDIT_CLEAN, INSPECTOR.name, "Minimum"), 1, BELOW)
        self._alarm("GatewaysUnhealthy", services.targets.metrics.unhealthy_host_count(), 0, minutes=3)
        healthy = services.targets.metrics.healthy_host_count()
        self._alarm("GatewaysFew", healthy, FEWEST - 1, BELOW, minutes=3, silence=cloudwatch.TreatMissingData.BREACHING)
        fullest = metrics.metric(metrics.CONNECTIONS, GATEWAY.name, "Maximum")
        self._alarm("GatewayFull", fullest, 0.9 * Settings.model_fields["max_connections"].default, minutes=3)

    def _add_kafka(self, engines: Engines) -> None:
        cluster = {"Cluster Name": engines.kafka.cluster_name}

        def metric(name: str, **more: str) -> cloudwatch.Metric:
            dimensions = cluster | {key.replace("_", " "): value for key, value in more.items()}
            return self._metric("AWS/Kafka", name, dimensions)

        self._alarm("KafkaOfflinePartitions", metric("OfflinePartitionsCount"), 0)
        self._alarm("KafkaNoController", metric("ActiveControllerCount"), 1, BELOW, minutes=5)
        for broker in BROKERS:
            disk = metric("KafkaDataLogsDiskUsed", Broker_ID=broker)
            self._alarm(f"KafkaDisk{broker}", disk, 70, minutes=5)
            behind = metric("UnderMinIsrPartitionCount", Broker_ID=broker)
            self._alarm(f"KafkaUnderMinIsr{broker}", behind, 0, minutes=3)

    def _add_redis(self, plan: Plan) -> None:
        limits = (
            ("DatabaseMemoryUsagePercentage", 75, 5),
            ("Evictions", 0, 1),
            ("EngineCPUUtilization", 80, 5),
        )
        for node, (name, limit, minutes) in itertools.product(plan.redis_nodes, limits):
            metric = self._metric("AWS/ElastiCache", name, {"CacheClusterId": f"connect-chat-{node}"})
            self._alarm(f"Redis{name}{node.replace('-', '')}", metric, limit, minutes=minutes)

    def _add_dynamodb(self, engines: Engines) -> None:
        table = {"TableName": engines.table.table_name}
        index = table | {"GlobalSecondaryIndexName": INDEX}
        for name, where in itertools.product(("WriteThrottleEvents", "ReadThrottleEvents"), (table, index)):
            kind = "Index" if where is index else "Table"
            self._alarm(f"DynamoDb{kind}{name}", self._metric("AWS/DynamoDB", name, where, "Sum"), 0, minutes=5)

    @staticmethod
    def _metric(namespace: str, name: str, dimensions: dict[str, str], statistic: str = "Maximum") -> cloudwatch.Metric:
        return cloudwatch.Metric(
            namespace=namespace,
            metric_name=name,
            dimensions_map=dimensions,
            statistic=statistic,
            period=cdk.Duration.minutes(1),
        )

    def _alarm(
        self,
        name: str,
        metric: cloudwatch.IMetric,
        threshold: float,
        comparison: cloudwatch.ComparisonOperator = ABOVE,
        minutes: int = 1,
        silence: cloudwatch.TreatMissingData = cloudwatch.TreatMissingData.NOT_BREACHING,
    ) -> None:
        alarm = cloudwatch.Alarm(
            self,
            name,
            alarm_name=f"connect-chat-{name}",
            metric=metric,
            threshold=threshold,
            comparison_operator=comparison,
            evaluation_periods=minutes,
            treat_missing_data=silence,
        )
        action = actions.SnsAction(self.topic)
        alarm.add_alarm_action(action)
        alarm.add_ok_action(action)
