"""The container image is built and a gateway runs from it, without Docker: by Buildah, as root, in a container or not.

The official bases are stood in for by Debian's own Python and Node under their names: no registry of images is asked.
"""

from __future__ import annotations

import asyncio
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from docker.local.image import DOCKERFILE
from docker.local.layout import ROOT
from docker.local.temporary_stack import Stack
from tests.machine.fresh import BASES, machine, make_base, remove, variables, why_not

STEP_S = 600
INCLUDED = {
    "python": ("python3", "python3-venv", "python3-pip", "ca-certificates"),
    "node": ("npm", "ca-certificates"),
}
# As in the official images.
PROGRAMS = {"python": {"python": "python3", "pip": "pip3"}, "node": {}}

pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(bool(why_not("buildah")), reason=why_not("buildah") or ""),
    pytest.mark.timeout(3600),
]


def bases() -> list[str]:
    """Return the names of the images which the Dockerfile builds on."""
    return sorted(set(re.findall(r"^FROM (\S+:\S+)", DOCKERFILE.read_text(), re.MULTILINE)))


@pytest.fixture
def environment(tmp_path: Path) -> Iterator[dict[str, str]]:
    """Return an environment in which Buildah needs no rights but root's, and keeps all in a folder of its own."""
    folder = BASES / f".images.{os.getpid()}"
    settings = tmp_path / "storage.conf"
    settings.write_text(f'[storage]\ndriver = "vfs"\ngraphroot = "{folder}/graph"\nrunroot = "{folder}/run"\n')
    yield {k: v for k, v in os.environ.items() if k != "DOCKER_HOST"} | {
        "BUILDAH_ISOLATION": "chroot",
        "CONTAINERS_STORAGE_CONF": str(settings),
        "TMPDIR": str(tmp_path),
    }
    remove(folder)


def buildah(environment: dict[str, str], *arguments: str) -> str:
    """Run Buildah; return what it prints."""
    command = ["buildah", *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=STEP_S, check=False)
    assert done.returncode == 0, f"{' '.join(command)}: {done.stderr}"
    return done.stdout.strip()


def stand_in(environment: dict[str, str], name: str) -> None:
    """Make an image of an official name."""
    kind = name.partition(":")[0]
    with machine(make_base("bookworm"), kind) as fresh:
        # What the machine trusts comes with the build alone.
        packages = " ".join(INCLUDED[kind])
        install = f"apt-get update && apt-get install --no-install-recommends {packages} && apt-get clean"
        status, text, _ = fresh.run(f"rm -r /usr/local/share/ca-certificates\n{install}", STEP_S)
        assert status == 0, text[-2000:]
        for program, its in PROGRAMS[kind].items():
            (fresh.root / "usr/local/bin" / program).symlink_to(f"/usr/bin/{its}")
        container = buildah(environment, "from", "scratch")
        buildah(environment, "add", "--quiet", container, str(fresh.root), "/")
    buildah(environment, "config", "--env", "PATH=/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin", container)
    buildah(environment, "commit", "--quiet", "--rm", container, name)


async def test_a_gateway_of_the_image_takes_a_message(
    stack: Stack, environment: dict[str, str], tell: Callable[[str], None]
) -> None:
    names = bases()
    assert {name.partition(":")[0] for name in names} == set(INCLUDED)
    began = time.monotonic()
    for name in names:
        stand_in(environment, name)
    tell(f"{', '.join(names)}: stood in for after {time.monotonic() - began:.0f} s")
    began = time.monotonic()
    done = await asyncio.to_thread(
        subprocess.run,
        [sys.executable, "-m", "docker.local.image"],
        cwd=ROOT,
        env=environment | variables(stack.layout),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=1800,
    )
    tell(f"built and tried after {time.monotonic() - began:.0f} s more: {done.stdout.strip().splitlines()[-1:]}")
    assert done.returncode == 0, f"{done.stdout[-4000:]}\n{done.stderr[-4000:]}"
    assert re.search(
        r"^buildah: the gateway of \S+ was ready, took a message at \S+, and ended", done.stdout, re.MULTILINE
    )
