"""The services: Fargate tasks, their permissions and their numbers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import aws_cdk as cdk
from aws_cdk import aws_applicationautoscaling as scaling
from aws_cdk import aws_cloudwatch as cloudwatch
from aws_cdk import aws_ecr as ecr
from aws_cdk import aws_ecs as ecs
from aws_cdk import aws_elasticloadbalancingv2 as elb
from aws_cdk import aws_iam as iam
from aws_cdk import aws_logs as logs
from aws_cdk import aws_secretsmanager as secrets
from constructs import Construct

from docker.aws import metrics
from docker.aws.engines import LOG_RETENTION, Engines
from docker.aws.network import BALANCERS, HTTPS, TASKS, USERS_OF_REDIS, Network
from docker.aws.plan import MIN_INSYNC, REPLICATION, TARGET_CONNECTIONS, Plan
from gateway.protocol import PATH
from tables.chat_history import INDEX

PORT: Final = 8080
METRICS_PORT: Final = 8085
"""The gateway's port for metrics only: CHAT_METRICS_PORT."""
USER: Final = "10001"
"""The user id that docker/Dockerfile sets."""
STOP: Final = cdk.Duration.seconds(60)
"""The time after which a stopping task is killed: a gateway closes connections and flushes, a worker ends its batch."""
IDLE: Final = cdk.Duration.seconds(300)
"""The silence after which the load balancer closes a connection; a gateway pings once per CHAT_HEARTBEAT."""
FEWEST: Final = 3
"""The smallest number of tasks of each service that runs more than one: one in each zone."""
SCRATCH: Final = "/dev/shm"  # noqa: S108 - in a task nobody else is there
"""The only folder that a task can write to. It is in memory; Faust creates the empty folders it needs there."""
WORKER: Final = "-l info --web-bind 127.0.0.1 --web-port 8080"
ALIVE: Final = f"import urllib.request; urllib.request.urlopen('http://127.0.0.1:{PORT}/healthz', timeout=4)"
"""The liveness check. It does not ask /readyz: a task that waits for an engine or for partitions must not be killed."""
READ: Final = ("dynamodb:Query", "dynamodb:BatchGetItem")


@dataclass(frozen=True)
class Part:
    """A kind of task: its command, vCPUs in 1/1024, memory in MiB, and its permissions on the table."""

    name: str
    command: str
    cpu: int = 1024
    memory: int = 2048
    table: Sequence[str] = ()
    tokens: bool = False
    """True for a part that verifies users' tokens."""


GATEWAY: Final = Part("gateway", "python -m gateway", table=("dynamodb:Query",), tokens=True)
WORKERS: Final = (
    Part("messaging", f"faust -q -A chat_streams.messaging worker {WORKER}"),
    Part("notification", f"faust -q -A chat_streams.notification worker {WORKER}"),
    Part("history", f"faust -q -A chat_streams.history worker {WORKER}", table=("dynamodb:BatchWriteItem",)),
)
INSPECTOR: Final = Part(
    "inspector",
    "faust -q -A chat_streams.inspector worker -l info --web-bind 0.0.0.0 --web-port 8080",
    table=READ,
    tokens=True,
)
OPERATOR: Final = Part("operator", "faust -A chat_streams topics create", table=("dynamodb:DescribeTable", *READ))


class Tasks(Construct):
    """The ECS cluster, the repository of the image, and the task definition of each part."""

    def __init__(self, scope: Construct, plan: Plan, network: Network, engines: Engines) -> None:
        super().__init__(scope, "Tasks")
        self.network = network
        self.cluster = ecs.Cluster(self, "Cluster", vpc=network.vpc, cluster_name="connect-chat")
        self.repository = ecr.Repository(
            self,
            "Images",
            repository_name="connect-chat",
            image_tag_mutability=ecr.TagMutability.IMMUTABLE,
            image_scan_on_push=True,
        )
        self._plan, self._engines = plan, engines

    def definition(self, scope: Construct, part: Part, service: bool = True) -> ecs.FargateTaskDefinition:
        """Return the task definition of a part; a service gets a metrics collector beside it."""
        task = ecs.FargateTaskDefinition(scope, "Task", cpu=part.cpu, memory_limit_mib=part.memory)
        log_group = logs.LogGroup(scope, "Logs", retention=LOG_RETENTION)
        container = self._container(
            task,
            part.name,
            log_group,
            image=ecs.ContainerImage.from_ecr_repository(self.repository, self._plan.tag),
            command=part.command.split(),
            environment=self._environment(part),
            secrets=self._secrets(scope, task, part),
            stop_timeout=STOP,
            health_check=ecs.HealthCheck(command=["CMD", "python", "-c", ALIVE]) if service else None,
        )
        # Each connection is an open file.
        container.add_ulimits(ecs.Ulimit(name=ecs.UlimitName.NOFILE, soft_limit=65_535, hard_limit=65_535))
        if service:
            container.add_port_mappings(ecs.PortMapping(container_port=PORT))
            self._add_collector(scope, task, part, log_group)
        self._let(task.task_role, part.table)
        return task

    def _container(
        self, task: ecs.FargateTaskDefinition, name: str, log_group: logs.ILogGroup, **options: Any
    ) -> ecs.ContainerDefinition:
        hardened = ecs.LinuxParameters(task, f"{name}Linux")
        hardened.drop_capabilities(ecs.Capability.ALL)
        return task.add_container(
            name,
            readonly_root_filesystem=True,
            user=USER,
            linux_parameters=hardened,
            # A service must not block because its log is not accepted.
            logging=ecs.LogDrivers.aws_logs(
                stream_prefix=name,
                log_group=log_group,
                mode=ecs.AwsLogDriverMode.NON_BLOCKING,
                max_buffer_size=cdk.Size.mebibytes(8),
            ),
            **options,
        )

    def _environment(self, part: Part) -> dict[str, str]:
        found = {
            "AWS_DEFAULT_REGION": cdk.Stack.of(self).region,
            "APP_DATADIR": SCRATCH,
            "CHAT_KAFKA": self._engines.kafka_bootstrap,
            "CHAT_KAFKA_TLS": "true",
            "CHAT_PARTITIONS": str(self._plan.partitions),
            "CHAT_SLOTS": str(self._plan.slots),
            "CHAT_REPLICATION": str(REPLICATION),
            "CHAT_MIN_INSYNC": str(MIN_INSYNC),
        }
        if part.name in USERS_OF_REDIS:
            found["CHAT_REDIS"] = self._engines.redis_url
        if part.table:
            found["CHAT_HISTORY_TABLE"] = self._engines.table.table_name
        return found

    def _secrets(self, scope: Construct, task: ecs.FargateTaskDefinition, part: Part) -> dict[str, ecs.Secret]:
        engines = self._engines
        wanted = {"Kafka": engines.kafka_login}
        if part.name in USERS_OF_REDIS:
            wanted["Redis"] = engines.redis_login
        if part.tokens:
            wanted["Jwt"] = engines.jwt_secret
        # The role is imported by its ARN: with the role itself, the CDK would name it in the key's policy, and each
        # stack would need the other first.
        known = {
            name: secrets.Secret.from_secret_complete_arn(scope, name, secret.secret_arn)
            for name, secret in wanted.items()
        }
        task.obtain_execution_role().add_to_principal_policy(self._use_of_key("secretsmanager", "kms:Decrypt"))
        return {
            variable: ecs.Secret.from_secrets_manager(known[name], key)
            for variable, name, key in (
                ("CHAT_KAFKA_USER", "Kafka", "username"),
                ("CHAT_KAFKA_PASSWORD", "Kafka", "password"),
                ("CHAT_REDIS_USER", "Redis", "username"),
                ("CHAT_REDIS_PASSWORD", "Redis", "password"),
                ("CHAT_JWT_SECRET", "Jwt", None),
            )
            if name in known
        }

    def _add_collector(
        self, scope: Construct, task: ecs.FargateTaskDefinition, part: Part, log_group: logs.LogGroup
    ) -> None:
        stack = cdk.Stack.of(scope)
        samples = logs.LogGroup(scope, "Metrics", retention=logs.RetentionDays.ONE_DAY)
        port = METRICS_PORT if part is GATEWAY else PORT
        config = metrics.collector(part.name, port, samples.log_group_name, stack.region)
        self._container(
            task,
            "collector",
            log_group,
            image=ecs.ContainerImage.from_registry(metrics.COLLECTOR),
            environment={"AOT_CONFIG_CONTENT": stack.to_json_string(config)},
            # A service does its work without metrics.
            essential=False,
            cpu=64,
            memory_limit_mib=256,
        )
        samples.grant(
            task.task_role,
            *("logs:CreateLogStream", "logs:PutLogEvents"),
        )

    def _let(self, role: iam.IRole, actions: Sequence[str]) -> None:
        """Allow a role these actions on the table and nothing else; on its index, only Query."""
        if not actions:
            return
        arn = self._engines.table.table_arn
        resources = [arn, f"{arn}/index/{INDEX}"] if "dynamodb:Query" in actions else [arn]
        role.add_to_principal_policy(iam.PolicyStatement(actions=list(actions), resources=resources))
        # DynamoDB uses the key in the caller's name.
        writing = (
            ("kms:Encrypt", "kms:ReEncrypt*", "kms:GenerateDataKey*") if "dynamodb:BatchWriteItem" in actions else ()
        )
        role.add_to_principal_policy(self._use_of_key("dynamodb", "kms:Decrypt", "kms:DescribeKey", *writing))

    def _use_of_key(self, service: str, *actions: str) -> iam.PolicyStatement:
        """Return the statement that allows a role to use the key through one AWS service."""
        via = f"{service}.{cdk.Stack.of(self).region}.amazonaws.com"
        return iam.PolicyStatement(
            actions=list(actions),
            resources=[self._engines.key.key_arn],
            conditions={"StringEquals": {"kms:ViaService": via}},
        )


class Services(Construct):
    """Gateways behind a public load balancer, workers, and the inspector behind an internal load balancer."""

    def __init__(self, scope: Construct, plan: Plan, network: Network, tasks: Tasks) -> None:
        super().__init__(scope, "Services")
        self._plan, self._network, self._tasks = plan, network, tasks
        self.gateway = self._service(GATEWAY, healthy=(100, 200))
        self.balancer, self.targets = self._gateway_balancer()
        self._scale_gateways()
        for part in WORKERS:
            self._scale_worker(self._service(part, healthy=(100, 150)), part.name)
        # Never two: each of them would report the same lag.
        self.inspector = self._service(INSPECTOR, healthy=(0, 100), count=1)
        self.inner_balancer = self._inspector_balancer()

    def _service(self, part: Part, healthy: tuple[int, int], count: int | None = None) -> ecs.FargateService:
        """Return a service. Without a ``count`` it is scaled, and a deploy keeps its current number of tasks."""
        scope = Construct(self, part.name.capitalize())
        task = self._tasks.definition(scope, part)
        assert task.default_container is not None
        behind_balancer = part in (GATEWAY, INSPECTOR)
        return ecs.FargateService(
            scope,
            "Service",
            service_name=part.name,
            cluster=self._tasks.cluster,
            task_definition=task,
            desired_count=count,
            min_healthy_percent=healthy[0],
            max_healthy_percent=healthy[1],
            circuit_breaker=ecs.DeploymentCircuitBreaker(rollback=True),
            vpc_subnets=TASKS,
            security_groups=[self._network.tasks[part.name]],
            assign_public_ip=False,
            # A starting gateway waits for Kafka, Redis and a slot.
            health_check_grace_period=cdk.Duration.minutes(2) if behind_balancer else None,
        )

    def _balancer(self, scope: Construct, public: bool) -> elb.ApplicationLoadBalancer:
        network = self._network
        return elb.ApplicationLoadBalancer(
            scope,
            "Balancer",
            vpc=network.vpc,
            vpc_subnets=BALANCERS if public else TASKS,
            internet_facing=public,
            security_group=network.public_balancer if public else network.inner_balancer,
            idle_timeout=IDLE,
            deletion_protection=True,
            drop_invalid_header_fields=True,
        )

    def _listener(self, balancer: elb.ApplicationLoadBalancer, default: elb.ListenerAction) -> elb.ApplicationListener:
        return balancer.add_listener(
            "Https",
            port=HTTPS,
            open=False,
            certificates=[elb.ListenerCertificate.from_arn(self._plan.certificate)],
            ssl_policy=elb.SslPolicy.RECOMMENDED_TLS,
            default_action=default,
        )

    def _target_group(
        self, scope: Construct, service: ecs.FargateService, **options: Any
    ) -> elb.ApplicationTargetGroup:
        return elb.ApplicationTargetGroup(
            scope,
            "Targets",
            vpc=self._network.vpc,
            port=PORT,
            protocol=elb.ApplicationProtocol.HTTP,
            target_type=elb.TargetType.IP,
            targets=[service],
            health_check=elb.HealthCheck(
                path="/readyz",
                interval=cdk.Duration.seconds(30),
                # /readyz asks Redis, and answers within twice CHAT_ENGINE_TIMEOUT.
                timeout=cdk.Duration.seconds(12),
                healthy_threshold_count=2,
                # ECS replaces each task that the load balancer calls unhealthy. An engine that is down makes all
                # gateways unready, and stopping them would only add a reconnect storm: this allows five minutes for the
                # failure to pass.
                unhealthy_threshold_count=10,
            ),
            **options,
        )

    def _gateway_balancer(self) -> tuple[elb.ApplicationLoadBalancer, elb.ApplicationTargetGroup]:
        scope = Construct(self, "Public")
        balancer = self._balancer(scope, public=True)
        targets = self._target_group(
            scope,
            self.gateway,
            # A connection counts as a request: the gateway with the fewest gets the next.
            load_balancing_algorithm_type=elb.TargetGroupLoadBalancingAlgorithmType.LEAST_OUTSTANDING_REQUESTS,
            # No WebSocket ends by itself: a longer wait would only delay the end.
            deregistration_delay=cdk.Duration.seconds(10),
        )
        # Nothing but the WebSocket is public; /metrics, for example, is not.
        listener = self._listener(balancer, elb.ListenerAction.fixed_response(404))
        listener.add_action(
            "WebSocket",
            priority=1,
            conditions=[elb.ListenerCondition.path_patterns([PATH])],
            action=elb.ListenerAction.forward([targets]),
        )
        balancer.add_redirect(open=False)
        return balancer, targets

    def _inspector_balancer(self) -> elb.ApplicationLoadBalancer:
        scope = Construct(self, "Inner")
        balancer = self._balancer(scope, public=False)
        targets = self._target_group(scope, self.inspector, deregistration_delay=cdk.Duration.seconds(10))
        self._listener(balancer, elb.ListenerAction.forward([targets]))
        return balancer

    def _scale_gateways(self) -> None:
        count = self.gateway.auto_scale_task_count(min_capacity=FEWEST, max_capacity=self._plan.most_gateways)
        count.scale_to_track_custom_metric(
            "Connections",
            metric=metrics.metric(metrics.CONNECTIONS, GATEWAY.name, cloudwatch.Stats.AVERAGE),
            target_value=TARGET_CONNECTIONS,
            scale_out_cooldown=cdk.Duration.minutes(1),
            # Each gateway that is removed sends its clients to the others.
            scale_in_cooldown=cdk.Duration.minutes(15),
        )

    def _scale_worker(self, service: ecs.FargateService, group: str) -> None:
        # Tasks beyond the number of partitions would be assigned none.
        most = self._plan.partitions
        count = service.auto_scale_task_count(min_capacity=min(FEWEST, most), max_capacity=most)
        count.scale_on_metric(
            "Lag",
            metric=metrics.metric(metrics.LAG, group, cloudwatch.Stats.MAXIMUM),
            adjustment_type=scaling.AdjustmentType.CHANGE_IN_CAPACITY,
            scaling_steps=[
                scaling.ScalingInterval(upper=2, change=-1),
                scaling.ScalingInterval(lower=10, upper=60, change=1),
                scaling.ScalingInterval(lower=60, change=3),
            ],
            evaluation_periods=3,
            # Each change is a rebalance, during which the partitions that move are not processed.
            cooldown=cdk.Duration.minutes(5),
        )
