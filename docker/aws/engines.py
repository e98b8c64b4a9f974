"""The engines: Kafka (MSK), Redis (ElastiCache for Valkey), DynamoDB, and the secrets with their credentials."""

from __future__ import annotations

import json
from typing import Final

import aws_cdk as cdk
from aws_cdk import aws_dynamodb as dynamodb
from aws_cdk import aws_elasticache as elasticache
from aws_cdk import aws_iam as iam
from aws_cdk import aws_kms as kms
from aws_cdk import aws_logs as logs
from aws_cdk import aws_msk as msk
from aws_cdk import aws_secretsmanager as secrets
from aws_cdk import custom_resources
from constructs import Construct

from docker.aws.network import DATA, REDIS_PORT, Network
from docker.aws.plan import MIN_INSYNC, REPLICATION, Plan
from tables.chat_history import INDEX

KAFKA_VERSION: Final = "4.1.x.kraft"
VALKEY_VERSION: Final = "8.1"
USER: Final = "connect-chat"
REDIS_ACCESS: Final = (
    "on ~* -@all +@read +@write +@connection -@dangerous -function"
    " +fcall +fcall_ro +eval +eval_ro +function|load +function|list +function|delete"
    " +cluster|slots +cluster|shards +cluster|nodes +command +info +time"
)
"""The commands that ``tables/`` and the functions of ``tables/lua/`` call, as rules of Redis's ACL SETUSER."""
KAFKA_PROPERTIES: Final = {
    # "topics create" makes the topics, and checks each of these settings again for its own.
    "auto.create.topics.enable": "false",
    "default.replication.factor": str(REPLICATION),
    "min.insync.replicas": str(MIN_INSYNC),
    "unclean.leader.election.enable": "false",
    "log.retention.hours": str(30 * 24),
    # Longer than that: what a group that was away has applied must not be forgotten before.
    "offsets.retention.minutes": str(60 * 24 * 60),
    # The same as on a developer's machine: a dead letter holds a whole record.
    "message.max.bytes": str(4 * 1024 * 1024),
    "replica.fetch.max.bytes": str(4 * 1024 * 1024),
    # CHAT_SESSION_TIMEOUT must not be below this.
    "group.min.session.timeout.ms": "6000",
}
LOG_RETENTION: Final = logs.RetentionDays.ONE_MONTH


class Engines(Construct):
    """The data stores, encrypted with one key. All but Redis are kept when the stack is deleted."""

    def __init__(self, scope: Construct, plan: Plan, network: Network) -> None:
        super().__init__(scope, "Engines")
        self.key = kms.Key(
            self,
            "Key",
            description="Connect Chat: messages, secrets, alarms",
            enable_key_rotation=True,
            removal_policy=cdk.RemovalPolicy.RETAIN,
        )
        self.jwt_secret = self._secret("JwtSecret", "signs the tokens of users (HS256)", length=64)
        # MSK accepts only secrets whose names begin like this.
        self.kafka_login = self._login("KafkaLogin", "SASL/SCRAM user of Kafka", "AmazonMSK_connect-chat")
        self.redis_login = self._login("RedisLogin", "user of Redis")
        self.kafka = self._kafka(plan, network)
        self.kafka_bootstrap = self._bootstrap()
        self.redis = self._redis(plan, network)
        self.redis_url = (
            f"rediss://{self.redis.attr_configuration_end_point_address}:{self.redis.attr_configuration_end_point_port}"
        )
        self.table = self._table()

    def _secret(
        self, name: str, what: str, secret_name: str | None = None, length: int = 40, **template: str
    ) -> secrets.Secret:
        return secrets.Secret(
            self,
            name,
            description=f"Connect Chat: {what}",
            secret_name=secret_name,
            encryption_key=self.key,
            generate_secret_string=secrets.SecretStringGenerator(
                exclude_punctuation=True, password_length=length, **template
            ),
        )

    def _login(self, name: str, what: str, secret_name: str | None = None) -> secrets.Secret:
        user = json.dumps({"username": USER})
        return self._secret(name, what, secret_name, secret_string_template=user, generate_string_key="password")

    def _kafka(self, plan: Plan, network: Network) -> msk.CfnCluster:
        configuration = msk.CfnConfiguration(
            self,
            "KafkaConfiguration",
            name="connect-chat",
            server_properties="\n".join(f"{name}={value}" for name, value in KAFKA_PROPERTIES.items()),
        )
        cluster = msk.CfnCluster(
            self,
            "Kafka",
            cluster_name="connect-chat",
            kafka_version=KAFKA_VERSION,
            number_of_broker_nodes=3,
            broker_node_group_info=msk.CfnCluster.BrokerNodeGroupInfoProperty(
                client_subnets=network.vpc.select_subnets(subnet_group_name=DATA.subnet_group_name).subnet_ids,
                instance_type=plan.kafka_instance,
                security_groups=[network.kafka.security_group_id],
                connectivity_info=msk.CfnCluster.ConnectivityInfoProperty(
                    public_access=msk.CfnCluster.PublicAccessProperty(type="DISABLED")
                ),
                storage_info=msk.CfnCluster.StorageInfoProperty(
                    ebs_storage_info=msk.CfnCluster.EBSStorageInfoProperty(volume_size=plan.kafka_gib)
                ),
            ),
            client_authentication=msk.CfnCluster.ClientAuthenticationProperty(
                # Not IAM: aiokafka 0.14 cannot authenticate again on an open connection (aiokafka issue 1105), so each
                # connection would be cut when its token expires.
                sasl=msk.CfnCluster.SaslProperty(scram=msk.CfnCluster.ScramProperty(enabled=True)),
                unauthenticated=msk.CfnCluster.UnauthenticatedProperty(enabled=False),
            ),
            configuration_info=msk.CfnCluster.ConfigurationInfoProperty(
                arn=configuration.attr_arn, revision=configuration.attr_latest_revision_revision
            ),
            encryption_info=msk.CfnCluster.EncryptionInfoProperty(
                encryption_at_rest=msk.CfnCluster.EncryptionAtRestProperty(data_volume_kms_key_id=self.key.key_arn),
                encryption_in_transit=msk.CfnCluster.EncryptionInTransitProperty(client_broker="TLS", in_cluster=True),
            ),
            logging_info=msk.CfnCluster.LoggingInfoProperty(
                broker_logs=msk.CfnCluster.BrokerLogsProperty(
                    cloud_watch_logs=msk.CfnCluster.CloudWatchLogsProperty(
                        enabled=True,
                        log_group=logs.LogGroup(self, "KafkaLogs", retention=LOG_RETENTION).log_group_name,
                    )
                )
            ),
        )
        cluster.apply_removal_policy(cdk.RemovalPolicy.RETAIN)
        self.kafka_login.add_to_resource_policy(
            iam.PolicyStatement(
                principals=[iam.ServicePrincipal("kafka.amazonaws.com")],
                actions=["secretsmanager:GetSecretValue"],
                resources=[self.kafka_login.secret_arn],
            )
        )
        msk.CfnBatchScramSecret(
            self, "KafkaUser", cluster_arn=cluster.attr_arn, secret_arn_list=[self.kafka_login.secret_arn]
        )
        return cluster

    def _bootstrap(self) -> str:
        # CloudFormation does not return the bootstrap servers, so the AWS API is asked.
        look = custom_resources.AwsSdkCall(
            service="kafka",
            action="GetBootstrapBrokers",
            parameters={"ClusterArn": self.kafka.attr_arn},
            physical_resource_id=custom_resources.PhysicalResourceId.of("bootstrap"),
            output_paths=["BootstrapBrokerStringSaslScram"],
        )
        found = custom_resources.AwsCustomResource(
            self,
            "KafkaBootstrap",
            on_update=look,
            install_latest_aws_sdk=False,
            log_group=logs.LogGroup(self, "KafkaBootstrapLogs", retention=LOG_RETENTION),
            policy=custom_resources.AwsCustomResourcePolicy.from_sdk_calls(resources=[self.kafka.attr_arn]),
        )
        return str(found.get_response_field("BootstrapBrokerStringSaslScram"))

    def _redis(self, plan: Plan, network: Network) -> elasticache.CfnReplicationGroup:
        user = elasticache.CfnUser(
            self,
            "RedisUser",
            engine="valkey",
            user_id=USER,
            user_name=USER,
            access_string=REDIS_ACCESS,
            authentication_mode={
                "Type": "password",
                # CloudFormation resolves it at deployment: the template holds only the secret's name.
                "Passwords": [self.redis_login.secret_value_from_json("password").unsafe_unwrap()],
            },
        )
        group = elasticache.CfnUserGroup(self, "RedisUsers", engine="valkey", user_group_id=USER, user_ids=[user.ref])
        subnets = elasticache.CfnSubnetGroup(
            self,
            "RedisSubnets",
            description="Connect Chat",
            subnet_ids=network.vpc.select_subnets(subnet_group_name=DATA.subnet_group_name).subnet_ids,
        )
        parameters = elasticache.CfnParameterGroup(
            self,
            "RedisParameters",
            cache_parameter_group_family="valkey8",
            description="Connect Chat",
            # ElastiCache's default policy evicts keys that have an expiry, as all inboxes have.
            properties={"cluster-enabled": "yes", "maxmemory-policy": "noeviction"},
        )
        # No snapshots: what Redis loses is restored from the log, which is more recent than a snapshot.
        return elasticache.CfnReplicationGroup(
            self,
            "Redis",
            replication_group_description="Connect Chat: inboxes",
            replication_group_id="connect-chat",
            engine="valkey",
            engine_version=VALKEY_VERSION,
            cache_node_type=plan.redis_node,
            cache_parameter_group_name=parameters.ref,
            cache_subnet_group_name=subnets.ref,
            security_group_ids=[network.redis.security_group_id],
            port=REDIS_PORT,
            cluster_mode="enabled",
            num_node_groups=plan.redis_shards,
            replicas_per_node_group=plan.redis_replicas,
            automatic_failover_enabled=True,
            multi_az_enabled=True,
            at_rest_encryption_enabled=True,
            kms_key_id=self.key.key_id,
            transit_encryption_enabled=True,
            transit_encryption_mode="required",
            user_group_ids=[group.ref],
        )

    def _table(self) -> dynamodb.Table:
        # The same schema as in tables/chat_history.py, which creates the table on a developer's machine.
        def attribute(name: str) -> dynamodb.Attribute:
            return dynamodb.Attribute(name=name, type=dynamodb.AttributeType.STRING)

        table = dynamodb.Table(
            self,
            "History",
            partition_key=attribute("conversation"),
            sort_key=attribute("at_id"),
            billing_mode=dynamodb.BillingMode.PAY_PER_REQUEST,
            encryption=dynamodb.TableEncryption.CUSTOMER_MANAGED,
            encryption_key=self.key,
            point_in_time_recovery_specification=dynamodb.PointInTimeRecoverySpecification(
                point_in_time_recovery_enabled=True
            ),
            deletion_protection=True,
            removal_policy=cdk.RemovalPolicy.RETAIN,
        )
        table.add_global_secondary_index(
            index_name=INDEX,
            partition_key=attribute("recipient"),
            sort_key=attribute("position"),
            projection_type=dynamodb.ProjectionType.INCLUDE,
            non_key_attributes=["json"],
        )
        return table
