"""The CDK app: ``python -m docker.aws.app`` writes the stacks' templates (``docs/aws.md``)."""

from __future__ import annotations

import sys
from typing import Any

import aws_cdk as cdk
from constructs import Construct

from docker.aws.alarms import Alarms
from docker.aws.engines import Engines
from docker.aws.network import TASKS, Network
from docker.aws.plan import Plan, PlanError, plan_of
from docker.aws.services import OPERATOR, Services, Tasks


class EnginesStack(cdk.Stack):
    """The network, the engines, and the task that creates the topics, which the services need before they start."""

    def __init__(self, scope: Construct, plan: Plan, **options: Any) -> None:
        super().__init__(scope, "connect-chat-engines", **options)
        self.network = Network(self, plan)
        self.engines = Engines(self, plan, self.network)
        self.tasks = Tasks(self, plan, self.network, self.engines)
        operator = self.tasks.definition(Construct(self, "Operator"), OPERATOR, service=False)
        subnets = self.network.vpc.select_subnets(subnet_group_name=TASKS.subnet_group_name).subnet_ids
        group = self.network.tasks[OPERATOR.name].security_group_id
        cdk.CfnOutput(self, "ImageRepository", value=self.tasks.repository.repository_uri)
        cdk.CfnOutput(
            self,
            "CreateTopics",
            description="Run once the image is pushed, before the services are deployed",
            value=f"aws ecs run-task --cluster {self.tasks.cluster.cluster_name} --launch-type FARGATE"
            f" --task-definition {operator.family} --network-configuration"
            f" 'awsvpcConfiguration={{subnets=[{','.join(subnets)}],securityGroups=[{group}]}}'",
        )


class ServicesStack(cdk.Stack):
    """The services, their load balancers and the alarms."""

    def __init__(self, scope: Construct, plan: Plan, engines: EnginesStack, **options: Any) -> None:
        super().__init__(scope, "connect-chat-services", **options)
        self.services = Services(self, plan, engines.network, engines.tasks)
        self.alarms = Alarms(self, plan, engines.engines, self.services)
        cdk.CfnOutput(self, "GatewayAddress", value=self.services.balancer.load_balancer_dns_name)
        cdk.CfnOutput(self, "InspectorAddress", value=self.services.inner_balancer.load_balancer_dns_name)
        cdk.CfnOutput(self, "AlarmTopic", value=self.alarms.topic.topic_arn)


def build(app: cdk.App) -> tuple[EnginesStack, ServicesStack]:
    """Build both stacks from the app's context. They name no account and no region. Raises ``PlanError``."""
    plan = plan_of({name: app.node.try_get_context(name) for name in Plan.model_fields})
    engines = EnginesStack(app, plan)
    return engines, ServicesStack(app, plan, engines)


def main() -> None:
    """Write the templates where the CDK expects them; a wrong context ends with one line on stderr and exit code 1."""
    app = cdk.App()
    try:
        build(app)
    except PlanError as error:
        sys.exit(f"docker.aws: {error}")
    app.synth()


if __name__ == "__main__":
    main()
