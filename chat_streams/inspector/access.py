"""Access to the inspector: a token signed with the project's keys, kept in a cookie for this site only."""

from __future__ import annotations

import time
from typing import Final, NamedTuple

from aiohttp import web

from chat_streams.model.errors import ConnectChatError, InvalidToken
from chat_streams.model.origins import AllowedOrigins
from chat_streams.runtime.tokens import BODIES, OPERATOR, VIEWER, Authenticator

COOKIE: Final = "inspector_token"
MAX_TOKEN: Final = 4096
OWN: Final = AllowedOrigins([])
"""The origins of forms: the site that they are sent to, and no other."""


class Viewer(NamedTuple):
    """The user of a request, the time their token expires (s since the epoch), and their roles."""

    user: str
    expires: float
    operator: bool
    bodies: bool


class AccessDenied(ConnectChatError):
    """A request has no token or an invalid one; the text gives the reason."""


class RoleMissing(AccessDenied):
    """A token is good, but not for this; the text says which role it needs."""


class Access:
    """The check of a request's token."""

    def __init__(self, authenticator: Authenticator) -> None:
        self._authenticator = authenticator

    async def run(self) -> None:
        """Keep the keys that tokens are checked with up to date, until this task is cancelled."""
        await self._authenticator.run()

    async def viewer(self, request: web.Request) -> Viewer:
        """Return the viewer of a request, by its ``Authorization`` header or cookie; raises as ``of_token``."""
        scheme, _, token = request.headers.get("Authorization", "").partition(" ")
        if scheme.lower() != "bearer":
            token = request.cookies.get(COOKIE, "")
        if not token:
            raise AccessDenied("there is no token")
        return await self.of_token(token.strip())

    async def of_token(self, token: str) -> Viewer:
        """Return the viewer that a token names; raises ``AccessDenied``, ``RoleMissing`` or ``KeysUnavailable``."""
        if len(token) > MAX_TOKEN:
            raise AccessDenied("it is too long for a token")
        try:
            found = await self._authenticator.identify(token)
        except InvalidToken as error:
            raise AccessDenied(str(error)) from error
        # The users of the chat have tokens, too.
        if found.roles.isdisjoint((VIEWER, OPERATOR)):
            raise RoleMissing(f"it has neither the role {VIEWER} nor {OPERATOR}: make token USER=… ROLE={VIEWER}")
        return Viewer(found.user, found.expires, OPERATOR in found.roles, BODIES in found.roles)


def same_origin(request: web.Request) -> bool:
    """Return whether a form was sent from a page of this site, to refuse cross-site request forgery."""
    origin = request.headers.get("Origin")
    if origin is None:
        # A program that sends its token in a header is no browser that another site could misuse.
        return "Authorization" in request.headers
    return OWN.allows(origin, request.host)


def remember(response: web.StreamResponse, token: str, viewer: Viewer, secure: bool) -> None:
    """Set the cookie that keeps the token in the browser until it expires."""
    response.set_cookie(
        COOKIE,
        token,
        max_age=max(0, int(viewer.expires - time.time())),
        httponly=True,
        samesite="Strict",
        secure=secure,
        path="/",
    )
