"""The AWS stack, written with the CDK: see ``docs/aws.md``."""
