"""The network: three zones, and the security groups that say which part may connect to which."""

from __future__ import annotations

from typing import Final

import aws_cdk as cdk
from aws_cdk import aws_ec2 as ec2
from constructs import Construct

from docker.aws.plan import VPC, Plan

KAFKA_PORT: Final = 9096
"""The port of MSK's listener for SASL/SCRAM over TLS."""
REDIS_PORT: Final = 6379
HTTPS: Final = 443
USERS_OF_KAFKA: Final = ("gateway", "messaging", "notification", "history", "inspector", "operator")
USERS_OF_REDIS: Final = ("gateway", "messaging", "notification", "inspector", "operator")

BALANCERS: Final = ec2.SubnetSelection(subnet_group_name="public")
TASKS: Final = ec2.SubnetSelection(subnet_group_name="tasks")
DATA: Final = ec2.SubnetSelection(subnet_group_name="data")


class Network(Construct):
    """Public subnets for the load balancer, private ones for the tasks, and isolated ones for the data stores."""

    def __init__(self, scope: Construct, plan: Plan) -> None:
        super().__init__(scope, "Network")
        self.vpc = ec2.Vpc(
            self,
            "Vpc",
            ip_addresses=ec2.IpAddresses.cidr(VPC),
            availability_zones=plan.zones or [cdk.Fn.select(zone, cdk.Fn.get_azs()) for zone in range(3)],
            # One in each zone: with fewer, tasks of one zone could not start while another zone is down.
            nat_gateways=3,
            subnet_configuration=[
                ec2.SubnetConfiguration(
                    name="public", subnet_type=ec2.SubnetType.PUBLIC, cidr_mask=24, map_public_ip_on_launch=False
                ),
                ec2.SubnetConfiguration(name="tasks", subnet_type=ec2.SubnetType.PRIVATE_WITH_EGRESS, cidr_mask=20),
                ec2.SubnetConfiguration(name="data", subnet_type=ec2.SubnetType.PRIVATE_ISOLATED, cidr_mask=24),
            ],
            # Gateway endpoints cost nothing, and traffic to DynamoDB then pays no NAT gateway.
            gateway_endpoints={
                "DynamoDb": ec2.GatewayVpcEndpointOptions(service=ec2.GatewayVpcEndpointAwsService.DYNAMODB),
                "S3": ec2.GatewayVpcEndpointOptions(service=ec2.GatewayVpcEndpointAwsService.S3),
            },
        )
        self.public_balancer = self._group("PublicBalancer", "the balancer of the gateways")
        self.public_balancer.add_ingress_rule(ec2.Peer.any_ipv4(), ec2.Port.tcp(HTTPS), "clients")
        self.public_balancer.add_ingress_rule(ec2.Peer.any_ipv4(), ec2.Port.tcp(80), "is sent to HTTPS")
        self.inner_balancer = self._group("InnerBalancer", "the balancer of the inspector")
        self.inner_balancer.add_ingress_rule(ec2.Peer.ipv4(plan.operators), ec2.Port.tcp(HTTPS), "operators")
        self.kafka = self._group("Kafka", "the brokers")
        self.redis = self._group("Redis", "the cluster")
        self.tasks = {name: self._task_group(name) for name in USERS_OF_KAFKA}

    def _task_group(self, name: str) -> ec2.SecurityGroup:
        group = self._group(name.capitalize(), f"tasks of {name}")
        # DynamoDB, the registry, secrets, logs, and a JWKS URL.
        group.add_egress_rule(ec2.Peer.any_ipv4(), ec2.Port.tcp(HTTPS), "APIs of AWS")
        group.connections.allow_to(self.kafka, ec2.Port.tcp(KAFKA_PORT), f"{name} to Kafka")
        if name in USERS_OF_REDIS:
            group.connections.allow_to(self.redis, ec2.Port.tcp(REDIS_PORT), f"{name} to Redis")
        return group

    def _group(self, name: str, description: str) -> ec2.SecurityGroup:
        return ec2.SecurityGroup(self, name, vpc=self.vpc, description=description, allow_all_outbound=False)
