"""``make image``: builds the container image and starts a gateway from it, which serves a client on the local stack.

Docker is taken where an engine answers, else Podman or Buildah. Certificates, mirrors and proxies that this machine's
package managers are set up with are passed in as build secrets: nothing of them is in the image.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from chat_streams.runtime.tokens import mint
from clients.python.client import Client
from clients.python.errors import ConnectionClosed
from docker.local.layout import HOST, ROOT, Layout, StackError, service_environment
from docker.local.part import get_status

IMAGE: Final = "connect-chat:local"
DOCKERFILE: Final = ROOT / "docker" / "Dockerfile"
CERTIFICATES: Final = "/run/secrets/certificates"
"""Where the Dockerfile has the certificates mounted."""
BUILD_S: Final = 1800
START_S: Final = 90
STOP_S: Final = 30

_KEY: Final = "/run/secrets/jwt"
_COMMAND: Final = ("python", "-m", "gateway")
_BUNDLES: Final = ("/etc/ssl/certs/ca-certificates.crt", "/etc/pki/tls/certs/ca-bundle.crt", "/etc/ssl/cert.pem")
_OF_PIP: Final = ("index-url", "extra-index-url", "trusted-host", "timeout", "proxy")
_OF_NPM: Final = ("registry", "proxy", "https-proxy")


def find_engine() -> str:
    """Return what builds and runs images here; raises ``StackError`` where nothing does."""
    if shutil.which("docker") is not None and _output("docker", "info", "--format", "{{.ServerVersion}}"):
        return "docker"
    for name in ("podman", "buildah"):
        if shutil.which(name) is not None:
            return name
    raise StackError("no Docker engine answers, and podman and buildah are missing: sudo apt install podman")


def _output(*command: str) -> str:
    """Return what a command prints, nothing where it fails or is missing."""
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60, check=False
        )
    except (FileNotFoundError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def _certificates() -> Path | None:
    """Return the certificates that this machine trusts, as one file."""
    named = [os.environ.get(name) for name in ("PIP_CERT", "SSL_CERT_FILE", "REQUESTS_CA_BUNDLE")]
    return next((path for path in map(Path, filter(None, (*named, *_BUNDLES))) if path.is_file()), None)


def _pip_settings() -> str:
    """Return a pip.conf with this machine's settings that count in a container, too."""
    listed = dict(
        line.split("=", 1)
        for line in _output(sys.executable, "-m", "pip", "config", "list").splitlines()
        if "=" in line
    )
    lines = ["[global]"]
    for name in _OF_PIP:
        # "global.timeout='60'" is of a file, ":env:.timeout='60'" of a variable.
        value = listed.get(f":env:.{name}", listed.get(f"global.{name}"))
        if value is not None:
            lines.append(f"{name} = {value.strip(chr(39))}")
    return "\n".join(lines)


def _npm_settings() -> str:
    """Return an .npmrc with this machine's settings that count in a container, too."""
    values = {name: _output("npm", "config", "get", name) for name in _OF_NPM}
    return "\n".join(f"{name}={value}" for name, value in values.items() if value not in ("", "null", "undefined"))


def build(engine: str) -> None:
    """Build the image; raises ``StackError`` where that fails."""
    with tempfile.TemporaryDirectory() as folder:
        files = {"pip": _pip_settings(), "npm": _npm_settings()}
        if (bundle := _certificates()) is not None:
            files["certificates"] = bundle.read_text()
            files["pip"] += f"\ncert = {CERTIFICATES}"
            files["npm"] += f"\ncafile={CERTIFICATES}"
        options = []
        for name, text in files.items():
            path = Path(folder, name)
            path.write_text(text + "\n")
            options += ["--secret", f"id={name},src={path}"]
        proxies = [name for name in os.environ if name.lower() in ("http_proxy", "https_proxy", "no_proxy")]
        options += [part for name in proxies for part in ("--build-arg", name)]
        if engine != "docker":
            # The format that has a health check.
            options += ["--format", "docker"]
        command = [engine, "build", "--pull=false", "--tag", IMAGE, "--file", str(DOCKERFILE), *options, str(ROOT)]
        try:
            status = subprocess.run(command, stdin=subprocess.DEVNULL, timeout=BUILD_S, check=False).returncode
        except subprocess.TimeoutExpired:
            raise StackError(f"{engine} has not built the image after {BUILD_S} s") from None
        if status != 0:
            raise StackError(f"{engine} could not build the image: see above")


class Container:
    """A gateway that runs from the image, on ports of this machine."""

    def __init__(self, engine: str, layout: Layout) -> None:
        self.name = f"connect-chat-image-{secrets.token_hex(4)}"
        self.port, metrics = _free_ports(2)
        self._engine = engine
        self._secret = layout.secret_file.read_text()
        environment = service_environment(layout) | {
            "CHAT_GATEWAY_PORT": str(self.port),
            "CHAT_METRICS_PORT": str(metrics),
            "CHAT_LOG_FORMAT": "json",
        }
        # No command line shows the secret: Buildah mounts a file, which the container's user can read and, for the
        # folder's sake, no other; the others take the value of a variable that is named alone from the environment.
        self._folder = tempfile.TemporaryDirectory()
        key = Path(self._folder.name, "jwt-secret")
        key.write_text(layout.secret_file.read_text())
        key.chmod(0o444)
        if engine == "buildah":
            environment["CHAT_JWT_SECRET_FILE"] = _KEY
        else:
            del environment["CHAT_JWT_SECRET_FILE"]
        variables = [f"{name}={value}" for name, value in environment.items()]
        options = [part for variable in variables for part in ("--env", variable)]
        if engine == "buildah":
            self._make(["from", "--pull-never", "--name", self.name, IMAGE])
            command = ["buildah", "run", "--volume", f"{key}:{_KEY}:ro", *options, self.name, "--", *_COMMAND]
        else:
            command = [
                *(engine, "run", "--rm", "--name", self.name, "--network", "host", "--read-only"),
                *("--tmpfs", "/tmp", "--tmpfs", "/var/lib/chat", "--cap-drop", "ALL"),  # noqa: S108 - the container's
                *options,
                *("--env", "CHAT_JWT_SECRET", IMAGE),
            ]
        self.process = subprocess.Popen(
            command, env=os.environ | {"CHAT_JWT_SECRET": self._secret}, stdin=subprocess.DEVNULL
        )

    def _make(self, arguments: Sequence[str]) -> None:
        done = subprocess.run([self._engine, *arguments], capture_output=True, text=True, timeout=300, check=False)
        if done.returncode != 0:
            raise StackError(f"{self._engine} {arguments[0]} failed: {done.stderr.strip()}")

    async def serve_a_client(self) -> str:
        """Wait until it is ready, and send a message through it; return its time. Raises ``StackError``."""
        for _ in range(START_S * 10):
            if await get_status(self.port, "/readyz") == 200:
                break
            if self.process.poll() is not None:
                raise StackError(f"the gateway of the image ended with {self.process.returncode}: see above")
            await asyncio.sleep(0.1)
        else:
            raise StackError(f"the gateway of the image is not ready after {START_S} s")
        user = self.name
        url = f"ws://{HOST}:{self.port}/v1/connect"
        try:
            async with Client(url, mint(self._secret, user, 600), "image", timeout_s=30) as client:
                return (await client.send(user, "from an image")).at
        except (ConnectionClosed, TimeoutError) as error:
            raise StackError(f"the gateway of the image takes no message: {error}") from error

    def stop(self) -> int:
        """End it in order; return its status."""
        if self._engine == "buildah":
            # Told to end, Buildah kills what it runs.
            os.kill(_innermost(self.process.pid), signal.SIGTERM)
        else:
            self._make(["stop", "-t", str(STOP_S), self.name])
        try:
            return self.process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            raise StackError(f"the gateway of the image has not ended {STOP_S} s after it was told to") from None

    def remove(self) -> None:
        """Take away what is left."""
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        self._folder.cleanup()
        verb = ["rm"] if self._engine == "buildah" else ["rm", "--force"]
        subprocess.run([self._engine, *verb, self.name], capture_output=True, timeout=300, check=False)


def _innermost(pid: int) -> int:
    """Return the process at the end of a chain of processes that each run the next."""
    while children := " ".join(file.read_text() for file in Path(f"/proc/{pid}/task").glob("*/children")).split():
        pid = int(children[0])
    return pid


def _free_ports(number: int) -> list[int]:
    probes = [socket.create_server((HOST, 0)) for _ in range(number)]
    ports = [int(probe.getsockname()[1]) for probe in probes]
    for probe in probes:
        probe.close()
    return ports


def show(layout: Layout) -> str:
    """Build the image, start a gateway from it and end it; return what it did. Raises ``StackError``."""
    engine = find_engine()
    build(engine)
    container = Container(engine, layout)
    try:
        at = asyncio.run(container.serve_a_client())
        status = container.stop()
    finally:
        container.remove()
    if status != 0:
        raise StackError(f"the gateway of the image ended with {status}")
    return f"{engine}: the gateway of {IMAGE} was ready, took a message at {at}, and ended in order"


def main() -> None:
    """Build the image, and show that it works."""
    try:
        print(show(Layout.from_settings()))  # noqa: T201 - for who typed make
    except StackError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
