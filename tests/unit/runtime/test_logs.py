"""Whatever logs, it is one line of JSON, or one for people."""

from __future__ import annotations

import json
import subprocess
import sys

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


def test_what_people_read_has_no_values_of_variables_either() -> None:
    text = "\n".join(lines("console"))
    assert "slot taken" in text
    assert "slot=3" in text
    assert text.count("ValueError: why") == 2
    assert "alice" not in text
