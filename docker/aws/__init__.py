"""The stack for AWS, in the CDK: ``docs/aws.md``."""
