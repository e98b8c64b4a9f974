"""The local stack's supervisord: its configuration, start and stop, and its report on each part."""

from __future__ import annotations

import configparser
import hashlib
import io
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from xmlrpc.client import Fault

from supervisor.childutils import getRPCInterface

from docker.local.layout import ROOT, Layout, StackError, base_environment, service_environment
from docker.local.part import Part

RESTARTS = 100
"""Restarts after which supervisord gives a part up; the pause before restart n is n seconds."""
STEADY_SECONDS = 10
"""A part that ran for less than this is restarted after a pause, one that ran longer immediately."""
_PLAIN = re.compile(r"[\w./:=,+*@\"-]([\w./:=,+*@\" -]*[\w./:=,+*@\"-])?", re.ASCII)
SOCKET_PATH_BYTES = 90
"""The longest path of a socket. Linux allows 107, and supervisord appends its pid while it creates the socket."""


class Supervisor:
    """The supervisord of one data folder, reached through its socket in that folder."""

    def __init__(self, layout: Layout, groups: dict[str, Sequence[Part]]) -> None:
        self.layout = layout
        self.groups = groups
        self.configuration = layout.data / "supervisord.conf"
        self.log = layout.logs / "supervisord.log"
        self._socket = layout.data / "supervisor.sock"
        self._url = f"unix://{self._socket}"

    @property
    def _rpc(self) -> Any:
        # A new proxy each time: one that failed to connect fails for good.
        return getRPCInterface({"SUPERVISOR_SERVER_URL": self._url}).supervisor

    def is_running(self) -> bool:
        """Return whether supervisord answers."""
        try:
            self._rpc.getState()
        except OSError:
            return False
        return True

    def start(self) -> None:
        """Start supervisord in the background, with all parts stopped.

        Raises ``StackError`` when it does not come up, or its socket's path is too long for the system.
        """
        if len(os.fsencode(self._socket)) > SOCKET_PATH_BYTES:
            raise StackError(f"the path {self._socket} is too long for a socket: set CHAT_LOCAL_DATA to a shorter one")
        self.layout.logs.mkdir(parents=True, exist_ok=True)
        configuration, variables = self._expected_configuration()
        self.configuration.write_text(configuration)
        done = subprocess.run(
            [sys.executable, "-m", "supervisor.supervisord", "-c", str(self.configuration)],
            cwd=ROOT,
            env=self._environment() | variables,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
        )
        deadline = time.monotonic() + 10
        while done.returncode == 0 and time.monotonic() < deadline:
            if self.is_running():
                return
            time.sleep(0.05)
        raise StackError(f"supervisord did not start, see {self.log}: {done.stdout}{done.stderr}".strip())

    def has_other_settings(self) -> bool:
        """Return whether the running supervisord was started with other settings or by another version of this code."""
        return self.configuration.read_text() != self._expected_configuration()[0]

    def shutdown(self) -> None:
        """Stop supervisord, and every part it still runs; returns when it is gone."""
        pid = self._rpc.getPID()
        self._rpc.shutdown()
        while _is_alive(pid):
            time.sleep(0.05)

    def processes(self) -> dict[str, dict[str, Any]]:
        """Return supervisord's information on each part, by name: ``statename``, ``pid`` (0 for none) and more."""
        return {str(process["name"]): process for process in self._rpc.getAllProcessInfo()}

    def start_part(self, part: Part) -> None:
        """Start a part that is not running; one that waits for its next restart is started now."""
        group = next(group for group, parts in self.groups.items() if part in parts)
        name = f"{group}:{part.name}"
        if self.processes()[part.name]["statename"] == "BACKOFF":
            self._rpc.stopProcess(name)
        try:
            self._rpc.startProcess(name, False)
        except Fault as error:
            raise StackError(f"{part.name} cannot be started: {error.faultString}, see {self.log}") from error

    def stop_group(self, group: str) -> list[str]:
        """Stop all running parts of a group, without waiting, and return the names of those not stopped yet."""
        self._rpc.stopProcessGroup(group, False)
        processes = self.processes()
        return [part.name for part in self.groups[group] if processes[part.name]["pid"]]

    def orphans(self) -> list[int]:
        """Return the pids of parts whose supervisord died without stopping them."""
        mark = f"SUPERVISOR_SERVER_URL={self._url}".encode()
        found = []
        for folder in Path("/proc").iterdir():
            if folder.name.isdigit():
                try:
                    environment = (folder / "environ").read_bytes()
                except OSError:  # gone by now, or another user's
                    continue
                if mark in environment.split(b"\0"):
                    found.append(int(folder.name))
        return found

    def stop_orphans(self) -> int:
        """Stop the ``orphans``, by force after 15 s, and return how many there were."""
        pids = self.orphans()
        for number, pause in ((signal.SIGTERM, 15.0), (signal.SIGKILL, 5.0)):
            for pid in filter(_is_alive, pids):
                os.kill(pid, number)
            deadline = time.monotonic() + pause
            while any(map(_is_alive, pids)) and time.monotonic() < deadline:
                time.sleep(0.05)
        return len(pids)

    def _environment(self) -> dict[str, str]:
        """Return the environment that supervisord passes to every part."""
        return base_environment() | service_environment(self.layout)

    def _expected_configuration(self) -> tuple[str, dict[str, str]]:
        """Return the text of the configuration, and the variables that it refers to."""
        shared = self._environment()
        settings = sorted(item for item in shared.items() if item[0].startswith("CHAT_"))
        sections: dict[str, dict[str, object]] = {
            "unix_http_server": {"file": self._socket, "chmod": "0700"},
            "rpcinterface:supervisor": {
                "supervisor.rpcinterface_factory": "supervisor.rpcinterface:make_main_rpcinterface"
            },
            "supervisorctl": {"serverurl": self._url},
            "supervisord": {
                "logfile": self.log,
                "logfile_maxbytes": "1MB",
                "logfile_backups": 1,
                "pidfile": self.layout.data / "supervisord.pid",
                "directory": ROOT,
            },
        }
        for group, parts in self.groups.items():
            sections[f"group:{group}"] = {"programs": ",".join(part.name for part in parts)}
            for part in parts:
                own = sorted(part.environment.items() - shared.items())
                sections[f"program:{part.name}"] = {
                    "command": shlex.join(part.command),
                    "directory": part.directory,
                    "environment": ",".join(f'{name}="{value}"' for name, value in own),
                    "autostart": "false",
                    "autorestart": "true",
                    "startsecs": STEADY_SECONDS,
                    "startretries": RESTARTS,
                    "stopwaitsecs": part.stop_seconds,
                    "stopasgroup": "true",
                    "redirect_stderr": "true",
                    "stdout_logfile": part.log,
                    "stdout_logfile_maxbytes": "10MB",
                    "stdout_logfile_backups": 2,
                }
        plain, variables = without_special_characters(sections)
        # supervisord ignores this section. By it ``has_other_settings`` notices changed settings of the services and
        # changed paths; only their hash is written, since they may hold a secret.
        hashed = repr((settings, variables)).encode(errors="surrogateescape")
        plain["settings"] = {"sha256": hashlib.sha256(hashed).hexdigest()}
        parser = configparser.ConfigParser(interpolation=None)
        parser.read_dict(plain)
        text = io.StringIO()
        parser.write(text)
        return text.getvalue(), variables


def without_special_characters(
    sections: dict[str, dict[str, object]],
) -> tuple[dict[str, dict[str, str]], dict[str, str]]:
    """Return the sections with a reference to a variable for each value that supervisord would misread; and those.

    Nothing in a configuration file of supervisord can be escaped but the percent sign: " ;" and " #" begin a comment.
    It expands variables when it has read the file.
    """
    plain: dict[str, dict[str, str]] = {}
    variables: dict[str, str] = {}
    for section, options in sections.items():
        plain[section] = {}
        for name, value in options.items():
            text = str(value)
            if not _PLAIN.fullmatch(text) and name != "environment":
                variable = f"STACK_VALUE_{len(variables)}"
                # These are expanded a second time (supervisor/options.py, processes_from_section).
                variables[variable] = text.replace("%", "%%") if name.endswith("_logfile") else text
                text = f"%(ENV_{variable})s"
            plain[section][name] = text
    return plain, variables


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True
