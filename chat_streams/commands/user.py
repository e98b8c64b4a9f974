"""``faust -A chat_streams user USER``: shows a user's connections, devices and inbox."""

from __future__ import annotations

import json
from typing import Any

import click
from faust.cli import argument, option
from rich.table import Table

from chat_streams.commands.output import Command, console, utc
from chat_streams.model.errors import RedisUnavailable, UnknownUser
from chat_streams.model.ids import is_id
from chat_streams.operations import user_state
from chat_streams.operations.formats import ago, number, size
from chat_streams.operations.leases import leases
from chat_streams.operations.user_state import Sources
from chat_streams.processing.service import Service
from tables.chat_history import ChatHistory
from tables.redis_cluster import Cluster


def register(app: Service) -> None:
    """Add the command to an app."""

    @app.command(
        argument("user"),
        option("--json", "as_json", is_flag=True, help="An object, as /api/user/USER of the inspector; bodies masked."),
        base=Command,
    )
    async def user(self: Command, user: str, as_json: bool) -> None:
        """Show a user as the inspector does: online or not, devices, connections, and the messages in the inbox.

        Exits with 1 if the user is not known, or if an engine is away.
        """
        if not is_id(user):
            raise click.ClickException(f"{user[:60]!r} is no user id: 1-128 characters of A-Z a-z 0-9 . _ ~ @ : -")
        cluster, history = Cluster(app.settings), ChatHistory(app.settings)
        try:
            try:
                slots = await leases(cluster, app.settings.slots)
            except RedisUnavailable:
                slots = None
            found = await user_state.look(Sources(app.settings, cluster, history), user, slots, bodies=False)
        except UnknownUser as error:
            raise click.ClickException(str(error)) from error
        finally:
            await cluster.close()
            await history.close()
        if as_json:
            click.echo(json.dumps(found, ensure_ascii=False))
        else:
            _show(found)
        errors = [found[name] for name in ("inbox_error", "connections_error", "history_error") if found[name]]
        if errors:
            raise click.ClickException("; ".join(errors))


def _show(found: dict[str, Any]) -> None:
    out, inbox = console(), found["inbox"]
    since = f" since {utc(found['last_seen'])}" if found["last_seen"] and not found["online"] else ""
    state = "online" if found["online"] else f"offline{since}"
    waiting = f"{number(inbox['messages'])} messages, {size(inbox['size'])}"
    oldest = f", the oldest came {ago(found['oldest_ms'])}" if found["oldest_ms"] else ""
    out.print(f"{found['user']}: {state}; partition {found['partition']}; in the inbox {waiting}{oldest}", markup=False)
    tables = (
        ("devices", ("device", "has everything up to", "last seen"), _devices(inbox)),
        ("connections", ("connection", "device", "slot", "gateway", "since", "state"), _connections(found)),
        ("in the inbox", ("sender", "messages"), [(name, number(n)) for name, n in inbox["senders"].items()]),
        ("last messages", ("at", "from", "id", "bytes"), _received(found)),
    )
    for title, columns, rows in tables:
        if rows:
            table = Table(*columns, title=title, title_justify="left")
            for row in rows:
                table.add_row(*row)
            out.print(table)


def _devices(inbox: dict[str, Any]) -> list[tuple[str, ...]]:
    return [
        (name, device["cursor"], utc(device["seen"] * 1000) if device["seen"] else "–")
        for name, device in inbox["devices"].items()
    ]


def _connections(found: dict[str, Any]) -> list[tuple[str, ...]]:
    return [
        (
            *(c["connection"][:8], c["device"], str(c["slot"]), c["gateway"], utc(c["since"])),
            f"gone {utc(c['gone_at'])}" if c["gone_at"] else "open",
        )
        for c in reversed(found["connections"])
    ]


def _received(found: dict[str, Any]) -> list[tuple[str, ...]]:
    return [(str(m["at"]), str(m["from"]), str(m["id"]), number(m["size"])) for m in found["received"]]
