"""The parts of the local stack: the engines and, once those are ready and have their topics, the services.

``make up`` runs them under supervisord (see ``stack.py``), the tests as plain subprocesses (``Part.start``).
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from docker.local.engines import DynamoDB, Kafka, RedisNode
from docker.local.layout import (
    HOST,
    INSTANCE_STEP,
    ROOT,
    Layout,
    StackError,
    base_environment,
    create_secret,
    service_environment,
)
from docker.local.part import LAST_LINES, Part, get_status


class Service(Part):
    """One process of a service of Connect Chat, ready when its ``/readyz`` says so.

    ``instance`` counts from 1; each has its own web port, data and log.
    """

    def __init__(self, layout: Layout, service: str, instance: int = 1) -> None:
        super().__init__(layout)
        self.name = service if instance == 1 else f"{service}-{instance}"
        field = service if service in ("gateway", "inspector") else f"{service}_web"
        self.ports = {field: getattr(layout, field) + INSTANCE_STEP * (instance - 1)}
        self.environment = service_environment(layout)
        if service == "gateway":
            self.url_format = "ws://{}/v1/connect"
            self.ports["gateway_metrics"] = layout.gateway_metrics + INSTANCE_STEP * (instance - 1)
            self.environment["CHAT_GATEWAY_PORT"] = str(self.port)
            self.environment["CHAT_METRICS_PORT"] = str(self.ports["gateway_metrics"])
            self.command = [sys.executable, "-m", "gateway"]
        else:
            self.url_format = "http://{}"
            self.command = [
                *(sys.executable, "-m", "faust", "-q", "--datadir", str(self.folder)),
                *("-A", f"chat_streams.{service}", "worker", "-l", "info"),
                *("--web-host", HOST, "--web-port", str(self.port)),
            ]

    @property
    def folder(self) -> Path:
        """The folder of the worker's tables."""
        return self.layout.data / "faust" / self.name

    def prepare(self) -> None:
        """Create the folders and the key that signs tokens."""
        super().prepare()
        create_secret(self.layout)

    async def is_ready(self) -> bool:
        """Return whether ``/readyz`` answers 200."""
        return await get_status(self.port, "/readyz") == 200


def engines(layout: Layout) -> list[Part]:
    """Return Kafka, Redis and DynamoDB, which can start in any order."""
    return [Kafka(layout), RedisNode(layout), DynamoDB(layout)]


def services(layout: Layout) -> list[Part]:
    """Return the services, to be started once the engines are ready and ``create_topics`` is done."""
    return [Service(layout, name) for name in ("gateway", "messaging", "notification", "history", "inspector")]


def create_topics(layout: Layout, seconds: float = 60.0, code: Path = ROOT) -> None:
    """Create the Kafka topics and the DynamoDB table, keeping what exists; the engines must be ready.

    The code in the folder ``code`` does it. Raises ``StackError`` with the last lines of the output when that fails or
    takes longer than ``seconds``.
    """
    command = [sys.executable, "-m", "faust", "-A", "chat_streams", "topics", "create"]
    environment = base_environment() | service_environment(layout)
    try:
        subprocess.run(
            command,
            cwd=code,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=seconds,
            check=True,
        )
    except subprocess.TimeoutExpired:
        raise StackError(f"creating the topics was not done after {seconds:g} s") from None
    except subprocess.CalledProcessError as error:
        lines = "\n".join(error.stdout.splitlines()[-LAST_LINES:])
        raise StackError(f"creating the topics failed with exit code {error.returncode}\n{lines}") from None
