"""``faust -A chat_streams token USER``: prints a token for development."""

from __future__ import annotations

import click
from faust.cli import AppCommand, argument, option

from chat_streams.commands.output import Command
from chat_streams.model.errors import SettingsError
from chat_streams.processing.service import Service
from chat_streams.runtime.tokens import ROLES, mint

DAY = 24 * 3600


def register(app: Service) -> None:
    """Add the command to an app."""

    @app.command(
        argument("user"),
        option("--ttl", "ttl_s", type=click.IntRange(1, 365 * DAY), default=DAY, help="Seconds until it expires."),
        option(
            "--role",
            "roles",
            type=click.Choice(ROLES),
            multiple=True,
            help="For the inspector, which wants viewer or operator: operator may redrive and audit, bodies shows what "
            "people write. May be given more than once.",
        ),
        base=Command,
    )
    async def token(self: AppCommand, user: str, ttl_s: int, roles: tuple[str, ...]) -> None:
        """Print a token for a user, signed with the HS256 key of the settings."""
        try:
            click.echo(mint(app.settings.jwt_key(), user, ttl_s, roles))
        except (SettingsError, ValueError) as error:
            raise click.ClickException(str(error)) from error
