"""All logs, of the project and of its libraries: one line of JSON each, or one for people."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from collections.abc import Iterator

import pytest

from chat_streams.runtime import logs
from docker.local.layout import ROOT

PROGRAM = """
import logging, structlog, sys
from chat_streams.runtime import logs
logs.configure(sys.argv[1])
secret = "what alice wrote"
structlog.get_logger().info("slot taken", slot=3)
logging.getLogger("faust.app").warning("rebalance %s", 1)
logging.getLogger("aiokafka").info("quiet")
try:
    raise ValueError("why")
except ValueError:
    structlog.get_logger().exception("a page failed", path="/")
    logging.getLogger("aiohttp.server").exception("handler")
"""

LEVELS = ("debug", "info", "warning", "error", "exception", "critical")
OTHER_NAMES = ("tp", "reason", "exc", "exception", "to", "expected", "from_offset")
"""Names that ``error`` (an exception's repr), ``topic``, ``partition`` and ``offset`` are used for."""


def lines(form: str) -> list[str]:
    command = [sys.executable, "-c", PROGRAM, form]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout == ""
    return done.stderr.splitlines()


def test_json_is_one_object_a_line_of_ours_and_of_the_libraries() -> None:
    for form in ("json", "auto"):
        found = [json.loads(line) for line in lines(form)]
        assert [(f["event"], f["level"]) for f in found] == [
            ("slot taken", "info"),
            ("rebalance 1", "warning"),
            ("a page failed", "error"),
            ("handler", "error"),
        ]
        assert all(f["timestamp"].endswith("Z") for f in found)
        assert found[0]["slot"] == 3
        assert found[1]["logger"] == "faust.app"
        assert all("ValueError: why" in f["exception"] for f in found[2:])


def test_tracebacks_for_people_have_no_values_of_variables_either() -> None:
    text = "\n".join(lines("console"))
    assert "slot taken" in text
    assert "slot=3" in text
    assert text.count("ValueError: why") == 2
    assert "alice" not in text


SECRETS = ("sesame open", 'a"b\\\\c\u00fcd', "key=a/b&c=d")
TELLING = """
import logging, structlog, sys
from chat_streams.runtime import logs
secrets = sys.argv[2:]
logs.configure(sys.argv[1], secrets)
log = structlog.get_logger()
for secret in secrets:
    log.info(f"to https://host/?{secret}", error=repr(OSError(secret)), url=secret)
    logging.getLogger("opentelemetry.sdk").warning("no answer of %s", secret)
    try:
        raise ValueError(f"login with {secret!r} failed")
    except ValueError:
        log.exception("failed")
        logging.getLogger("aiohttp.server").exception("failed")
"""


@pytest.mark.parametrize("form", ["json", "console"])
def test_no_line_shows_a_secret_whatever_says_it(form: str) -> None:
    command = [sys.executable, "-c", TELLING, form, *SECRETS]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    assert text.count(logs.HIDDEN) >= 5 * len(SECRETS)
    for part in ("sesame", "key=", 'a"b', "c=d"):
        assert part not in text
    if form == "json":
        assert all(json.loads(line) for line in text.splitlines())


def test_a_text_too_short_for_a_secret_is_not_taken_out() -> None:
    assert logs._spellings(["", "a", "secret"]) == ["secret"]


def calls(package: str) -> Iterator[tuple[str, ast.Call]]:
    """Yield place and call of each line that a package logs."""
    for path in sorted((ROOT / package).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in LEVELS:
                yield f"{path.relative_to(ROOT)}:{node.lineno}", node


@pytest.mark.parametrize("package", ["chat_streams", "gateway", "tables"])
def test_a_field_has_one_name(package: str) -> None:
    wrong = [
        f"{place}: {keyword.arg}"
        for place, call in calls(package)
        for keyword in call.keywords
        if keyword.arg in OTHER_NAMES or (keyword.arg == "error" and "repr" not in ast.dump(keyword.value))
    ]
    assert any(keyword.arg == "error" for _, call in calls(package) for keyword in call.keywords)
    assert wrong == []
