"""What the container files start, started as plain processes: no Docker engine is needed, and none was there."""

from __future__ import annotations

import asyncio
import json
import re
import shlex
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from docker.local.layout import HOST, ROOT, Layout, base_environment
from docker.local.part import Part, get_status
from docker.local.probes import WITHIN_S
from docker.local.temporary_stack import Stack, start_process

IMAGE = "connect-chat:local"
INSIDE = "8080"
"""What every service listens on in its container."""
DOCKERFILE = (ROOT / "docker" / "Dockerfile").read_text()


def compose(name: str) -> dict[str, Any]:
    """Return the services of a Compose file."""
    services: dict[str, Any] = yaml.safe_load((ROOT / "docker" / name).read_text())["services"]
    return services


SERVICES = {name: s for name, s in compose("compose.yaml").items() if s["image"] == IMAGE}


class Container(Part):
    """A service of compose.yaml with the command and the environment it has there, but for where the engines are."""

    def __init__(self, stack: Stack, layout: Layout, name: str) -> None:
        super().__init__(layout)
        self.name = name
        self.ports = {
            "web": getattr(layout, name if name in ("gateway", "inspector") else f"{name}_web", layout.gateway)
        }
        here = {
            "kafka:9092": stack.settings.kafka,
            "redis:6379": f"{HOST}:{stack.layout.redis}",
            "http://dynamodb:8000": str(stack.settings.dynamodb_endpoint),
            "0.0.0.0": HOST,  # noqa: S104 - that is what must not be
            INSIDE: str(self.port),
            "8085": str(layout.kafka),
        }

        def at_home(text: str) -> str:
            return re.sub("|".join(map(re.escape, here)), lambda found: here[found[0]], text)

        of_image = dict(re.findall(r"^ +(?:ENV )?(\w+)=(\S+)", DOCKERFILE.partition("\nENV ")[2], re.MULTILINE))
        self.environment = {
            name: at_home(str(value).split(":?")[0])
            for name, value in (of_image | SERVICES[self.name]["environment"]).items()
        }
        self.environment |= {
            "PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin",
            "PYTHONPATH": str(ROOT),
            "CHAT_JWT_SECRET": stack.settings.jwt_key(),
        }
        self.command = ["/usr/bin/env", *shlex.split(at_home(SERVICES[name]["command"]))]
        self.url_format = "http://{}"

    async def is_ready(self) -> bool:
        return await get_status(self.port, "/readyz") == 200

    async def healthy(self) -> bool:
        """Run the image's health check."""
        found = re.search(r"^HEALTHCHECK .*\\\n +CMD (\[.*\])$", DOCKERFILE, re.MULTILINE)
        assert found is not None
        command = [part.replace(INSIDE, str(self.port)) for part in json.loads(found[1])]
        process = await asyncio.create_subprocess_exec(*command, env=base_environment() | self.environment)
        return await process.wait() == 0


@pytest.mark.long
async def test_every_command_of_compose_starts_is_healthy_and_ends(
    stack: Stack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    layout = Layout.free(tmp_path)
    # As in the container: nothing of the sources is where it works.
    monkeypatch.setattr("docker.local.part.ROOT", tmp_path)
    names = [name for name in SERVICES if name != "topics"]
    assert len(names) == 5
    containers = [Container(stack, layout, name) for name in names]
    topics = Container(stack, layout, "topics")
    for container in (*containers, topics):
        container.prepare()
    running = [start_process(container) for container in containers]
    create = start_process(topics)
    try:
        assert await asyncio.to_thread(create.process.wait, WITHIN_S) == 0, topics.last_lines()
        assert "all topics are right" in topics.last_lines()
        await asyncio.gather(*(r.wait_ready(WITHIN_S) for r in running))
        assert await asyncio.gather(*(c.healthy() for c in containers)) == [True] * len(names)
        await asyncio.gather(*(asyncio.to_thread(r.stop) for r in running))
        assert [r.process.returncode for r in running] == [0] * len(names)
    finally:
        for r in (*running, create):
            r.kill()


def test_every_service_is_confined_and_waits_for_what_it_needs() -> None:
    services = compose("compose.yaml")
    for name, service in services.items():
        one_off = service.get("restart") == "no" or name == "redis-slots"
        assert one_off or "healthcheck" in service or service["image"] == IMAGE, name
        for needed in service.get("depends_on", {}).values():
            assert needed["condition"] in ("service_healthy", "service_completed_successfully")
        assert all(str(port).startswith("127.0.0.1:") for port in service.get("ports", [])), name
        assert not service["image"].endswith(":latest")
        assert ":" in service["image"]
        if service["image"] == IMAGE:
            assert service["read_only"]
            assert service["cap_drop"] == ["ALL"]
    cluster = compose("compose.cluster.yaml")
    assert {name for name in cluster if name not in services} == {
        *("kafka-2", "kafka-3"),
        *(f"redis-{n}" for n in range(2, 7)),
    }
