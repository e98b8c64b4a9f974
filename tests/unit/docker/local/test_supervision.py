from __future__ import annotations

import configparser
import io
import shlex
from pathlib import Path

import pytest
from supervisor.options import ServerOptions, UnhosedConfigParser

from docker.local.layout import Layout
from docker.local.parts import engines, services
from docker.local.supervision import Supervisor, without_special_characters

ODD = '\u00fc ,5%d "q" o\'b \\n #1 ;x $H [y] &!*?'
VALUES = (
    "/plain/path.conf",
    "a word",
    " outer space ",
    "/a ;b",
    "/a #b",
    "; x",
    "5%d %(here)s %%",
    "\u00fcml\u00e4ut",
    "\"quoted\" 'twice' \\back",
    "one\ntwo",
    shlex.join(["python", "a b", "c'd"]),
)


def read(text: str, variables: dict[str, str]) -> UnhosedConfigParser:
    """Read a configuration as supervisord does, with the variables in its environment."""
    parser = UnhosedConfigParser()
    parser.expansions = {f"ENV_{name}": value for name, value in variables.items()}
    parser.read_string(text)
    return parser


@pytest.mark.parametrize("value", VALUES)
def test_supervisord_reads_each_value_as_it_was(value: str) -> None:
    plain, variables = without_special_characters({"program:x": {"command": value}})
    written = configparser.ConfigParser(interpolation=None)
    written.read_dict(plain)
    text = io.StringIO()
    written.write(text)
    assert read(text.getvalue(), variables).saneget("program:x", "command") == value


@pytest.mark.parametrize("name", ["plain", ODD])
def test_supervisord_reads_the_paths_and_commands_of_all_parts(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str
) -> None:
    layout = Layout(data=tmp_path / name)
    layout.logs.mkdir(parents=True)
    parts = [*engines(layout), *services(layout)]
    for part in parts:
        part.code = tmp_path / name
    supervisor = Supervisor(layout, {"engines": parts[:3], "services": parts[3:]})
    text, variables = supervisor._expected_configuration()
    supervisor.configuration.write_text(text)
    for variable, value in variables.items():
        monkeypatch.setenv(variable, value)
    options = ServerOptions()
    options.realize(["-c", str(supervisor.configuration)])
    assert options.logfile == str(supervisor.log)
    assert options.configroot.supervisord.server_configs[0]["file"] == str(layout.data / "supervisor.sock")
    read = {config.name: config for group in options.process_group_configs for config in group.process_configs}
    for part in parts:
        config = read[part.name]
        assert shlex.split(config.command) == part.command
        assert (config.directory, config.stdout_logfile) == (str(part.directory), str(part.log))
        assert (
            config.environment.items()
            >= {key: value for key, value in part.environment.items() if key not in supervisor._environment()}.items()
        )


def test_another_path_is_another_configuration(tmp_path: Path) -> None:
    texts = set()
    for name in ("\u00fc ;5%d", "\u00fc ;6%d"):
        layout = Layout(data=tmp_path / name)
        supervisor = Supervisor(layout, {"engines": engines(layout), "services": services(layout)})
        texts.add(supervisor._expected_configuration()[0])
    assert len(texts) == 2
