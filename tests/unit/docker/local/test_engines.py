from __future__ import annotations

from pathlib import Path

from docker.local.engines import DynamoDB, Kafka, RedisNode, java_properties
from docker.local.layout import Layout

ODD = Path('/tmp/\u00fc ,5%d "q" o\'b \\n #1 ;x $H')


def test_properties_are_escaped_as_java_reads_them() -> None:
    options = {"a": "C:\\new", "b": " x ", "c": "\u00fc\u4e2d", "d": "one\ntwo", "e": "1,2=3:4#5"}
    assert java_properties(options).splitlines() == [
        "a=C:\\\\new",
        "b=\\ x ",
        "c=\\u00fc\\u4e2d",
        "d=one\\u000atwo",
        "e=1,2=3:4#5",
    ]


def test_no_engine_is_configured_with_the_path_of_its_folder() -> None:
    layout = Layout(data=ODD)
    kafka, redis, dynamodb = Kafka(layout), RedisNode(layout), DynamoDB(layout)
    for engine in (kafka, redis, dynamodb):
        assert engine.directory == ODD / engine.name
        assert not any(str(ODD) in argument for argument in engine.command)
    for options in (kafka.options(), redis.options()):
        assert not any(str(ODD) in value for value in options.values())
