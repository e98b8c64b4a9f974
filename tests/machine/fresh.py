"""A machine on which nothing is installed: a root file system by debootstrap, with processes and mounts of its own.

Its network is this machine's, and so are its ports.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Final

from docker.local.layout import ROOT, Layout, variable

BASES: Final = ROOT / ".local" / "machines"
"""What debootstrap made stays here; the machines themselves are removed."""
BASE_S: Final = 900
HERE: Final = "/root/connect-chat"
"""The clone, on a machine."""

# Where package managers are told of registries and certificates; what is not there is left out.
_CONFIGURATION = (
    *("/etc/hosts", "/etc/resolv.conf", "/etc/pip.conf", "/etc/npmrc"),
    *("~/.npmrc", "~/.m2/settings.xml", "~/.config/pip/pip.conf"),
)
_CERTIFICATES = Path("/usr/local/share/ca-certificates")
# Of the devices of a machine, what a program may expect; in a file system of its own /dev/shm has no other limit.
_START = """
set -e
mount --bind "$1" "$1"
mount -t proc proc "$1/proc"
mount -t tmpfs -o mode=755 tmpfs "$1/dev"
for device in null zero full random urandom tty; do
    touch "$1/dev/$device"
    mount --bind "/dev/$device" "$1/dev/$device"
done
mkdir "$1/dev/pts" "$1/dev/shm"
mount -t devpts -o newinstance,ptmxmode=666 devpts "$1/dev/pts"
mount -t tmpfs -o mode=1777 tmpfs "$1/dev/shm"
ln -s pts/ptmx "$1/dev/ptmx"
ln -s /proc/self/fd "$1/dev/fd"
ln -s /proc/self/fd/0 "$1/dev/stdin"
ln -s /proc/self/fd/1 "$1/dev/stdout"
ln -s /proc/self/fd/2 "$1/dev/stderr"
touch "$1/started"
exec chroot "$1" /bin/sh -c 'while sleep 1; do :; done'
"""


def why_not(*programs: str) -> str | None:
    """Return why no machine can be made here, or what of these programs is missing, in one line, or ``None``."""
    if os.geteuid() != 0:
        return "a fresh machine is made by debootstrap, which needs root: sudo make faults"
    for program in ("debootstrap", *programs):
        if shutil.which(program) is None:
            return f"{program} is missing: sudo apt install {program}"
    done = subprocess.run(
        ["unshare", "--mount", "--pid", "--fork", "true"], capture_output=True, text=True, timeout=30, check=False
    )
    return f"a mount namespace cannot be made here: {done.stderr.strip()}" if done.returncode else None


def _settings_of_apt(suite: str) -> tuple[str | None, str]:
    """Return the mirror of this machine, if it is a Debian, and the lines of sources.list for a suite."""
    system = dict(line.split("=", 1) for line in Path("/etc/os-release").read_text().splitlines() if "=" in line)
    own = system.get("VERSION_CODENAME", "").strip('"')
    command = ["apt-get", "indextargets", "--format", "$(REPO_URI) $(RELEASE) $(COMPONENT)", "Identifier: Packages"]
    listed = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout
    found = {
        release.removeprefix(own): uri
        for uri, release, component in (line.split() for line in listed.splitlines())
        if component == "main" and release in (own, f"{own}-updates", f"{own}-security")
    }
    if system.get("ID") != "debian" or "" not in found:
        return None, ""
    return found[""], "".join(f"deb {uri} {suite}{part} main\n" for part, uri in found.items())


def make_base(suite: str) -> Path:
    """Return Debian's smallest root file system of a suite; the second time, the same one."""
    base = BASES / suite
    if base.exists():
        return base
    unfinished = BASES / f".{base.name}.{os.getpid()}"
    mirror, sources = _settings_of_apt(suite)
    command = ["debootstrap", "--variant=minbase", suite, str(unfinished), *([mirror] if mirror else [])]
    unfinished.parent.mkdir(parents=True, exist_ok=True)
    try:
        # In a namespace of its own nothing that it mounts is left behind, whatever ends it.
        done = subprocess.run(
            ["unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc", *command],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=BASE_S,
            check=False,
        )
        if done.returncode:
            raise RuntimeError(f"{' '.join(command)} failed:\n{done.stdout[-2000:]}")
        if sources:
            (unfinished / "etc/apt/sources.list").write_text(sources)
        command = ["apt-config", "dump", "Acquire"]
        dump = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout
        # What is fetched beside the lists of packages is this machine's affair.
        lines = [line for line in dump.splitlines(keepends=True) if not line.startswith("Acquire::IndexTargets")]
        (unfinished / "etc/apt/apt.conf.d/00acquire").write_text("".join(lines))
        # The answer of who types the command; without a terminal apt-get takes none.
        (unfinished / "etc/apt/apt.conf.d/01yes").write_text('APT::Get::Assume-Yes "true";\n')
        unfinished.rename(base)
    finally:
        remove(unfinished)
    return base


def remove(root: Path) -> None:
    """Remove a root file system, and nothing that is mounted in it."""
    if root.exists():
        subprocess.run(["rm", "-rf", "--one-file-system", str(root)], timeout=300, check=True)


def variables(layout: Layout) -> dict[str, str]:
    """Return the variables which make a layout the one of ``make up``."""
    return {variable(name): str(getattr(layout, name)) for name in Layout.model_fields}


def settings_of_clients() -> dict[str, str]:
    """Return the variables by which this machine's clients of package registries find certificates and mirrors."""
    names = {"SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "NODE_EXTRA_CA_CERTS"}
    return {
        name: value
        for name, value in os.environ.items()
        if name in names
        or name.lower().endswith("_proxy")
        # A folder of this machine is not there.
        or (name.startswith("PIP_") and not Path(value).is_dir())
    }


def give_settings(root: Path) -> None:
    """Give a root file system this machine's name servers, certificates and settings of package managers."""
    for name in _CONFIGURATION:
        own = Path(name).expanduser()
        if own.is_file():
            given = root / ("root" + name[1:] if name[0] == "~" else name[1:])
            given.parent.mkdir(parents=True, exist_ok=True)
            given.unlink(missing_ok=True)
            given.write_bytes(own.read_bytes())
    if _CERTIFICATES.is_dir():
        shutil.copytree(_CERTIFICATES, root / _CERTIFICATES.relative_to("/"), dirs_exist_ok=True)


class Machine:
    """A running machine; commands run in it one after the other, each within its time."""

    def __init__(self, root: Path, init: subprocess.Popen[bytes], log: Path, environment: dict[str, str]) -> None:
        self.root = root
        self.log = log
        self._init = init
        self._environment = {
            "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            "HOME": "/root",
            **settings_of_clients(),
            **environment,
        }

    def run(self, command: str, seconds: float, folder: str = "/") -> tuple[int, str, float]:
        """Run a line of shell; return its exit status, what it wrote, and how long it took.

        What is left of it after so many seconds is killed: its status is 124.
        """
        # unshare does not tell its child's id; the machine's first process is the child that it waits for.
        children = Path(f"/proc/{self._init.pid}/task/{self._init.pid}/children").read_text().split()
        enter = ["nsenter", "--target", children[0], "--mount", "--pid", "chroot", str(self.root)]
        began = time.monotonic()
        with self.log.open("ab+") as log:
            log.write(f"\n$ {command}\n".encode())
            log.flush()
            start = log.seek(0, os.SEEK_END)
            status = self._wait([*enter, "/bin/sh", "-c", f"cd {folder} || exit\n{command}"], seconds, log)
            took = time.monotonic() - began
            log.seek(start)
            text = log.read().decode(errors="replace")
            log.write(f"(status {status} after {took:.0f} s)\n".encode())
        return status, text, took

    def _wait(self, command: list[str], seconds: float, log: IO[bytes]) -> int:
        process = subprocess.Popen(
            command,
            env=self._environment,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            return process.wait(seconds)
        except subprocess.TimeoutExpired:
            return 124
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait(30)

    def clone(self) -> None:
        """Give the machine a clone of this repository, of what is committed."""
        command = ["git", "clone", "--quiet", "--no-hardlinks", str(ROOT), f"{self.root}{HERE}"]
        subprocess.run(command, timeout=120, check=True)


@contextmanager
def machine(base: Path, name: str, **environment: str) -> Iterator[Machine]:
    """Start a machine on a copy of a base; at the end all of its processes are killed and it is removed."""
    root = BASES / f".{name}.{os.getpid()}"
    log = BASES / f"{name}.log"
    log.unlink(missing_ok=True)
    init: subprocess.Popen[bytes] | None = None
    try:
        subprocess.run(["cp", "-a", str(base), str(root)], timeout=300, check=True)
        give_settings(root)
        # With the first process of a namespace the kernel ends all others in it, and its mounts; with us, the first.
        namespaces = ["setpriv", "--pdeathsig", "KILL", "unshare", "--mount", "--pid", "--fork", "--kill-child"]
        init = subprocess.Popen([*namespaces, "/bin/sh", "-c", _START, "sh", str(root)], stdin=subprocess.DEVNULL)
        until = time.monotonic() + 30
        while not (root / "started").exists():
            if init.poll() is not None or time.monotonic() > until:
                raise RuntimeError(f"the machine {name} did not start: see its mounts above")
            time.sleep(0.05)
        yield Machine(root, init, log, environment)
    finally:
        if init is not None:
            init.kill()
            init.wait(30)
        _remove_when_unused(root)


def _remove_when_unused(root: Path) -> None:
    """Remove a machine: its processes may be a moment from their end, and what they write then is removed, too."""
    for _ in range(20):
        try:
            remove(root)
        except subprocess.CalledProcessError:
            time.sleep(0.5)
        else:
            return
    raise RuntimeError(f"{root} could not be removed")
