"""Who may look: a token of the project's own keys, kept in a cookie that only this site sends back."""

from __future__ import annotations

import time
from typing import Final, NamedTuple
from urllib.parse import urlsplit

from aiohttp import web

from chat_streams.model.errors import ConnectChatError, InvalidToken, KeysUnavailable
from chat_streams.runtime.tokens import Authenticator

COOKIE: Final = "inspector_token"
OPERATOR: Final = "operator"
"""May redrive."""
BODIES: Final = "bodies"
"""May read what people write."""
MAX_TOKEN: Final = 4096


class Viewer(NamedTuple):
    """Who looks, until when (s since the epoch), and what they may."""

    user: str
    expires: float
    operator: bool
    bodies: bool


class AccessDenied(ConnectChatError):
    """There is no token, or it is not good; the text says why."""


class Access:
    """Tells who a request is from."""

    def __init__(self, authenticator: Authenticator) -> None:
        self._authenticator = authenticator

    async def viewer(self, request: web.Request) -> Viewer:
        """The viewer of a request, by its ``Authorization`` header or cookie; raises ``AccessDenied``."""
        scheme, _, token = request.headers.get("Authorization", "").partition(" ")
        if scheme.lower() != "bearer":
            token = request.cookies.get(COOKIE, "")
        if not token:
            raise AccessDenied("there is no token")
        return await self.of_token(token.strip())

    async def of_token(self, token: str) -> Viewer:
        """The viewer a token names; raises ``AccessDenied``."""
        if len(token) > MAX_TOKEN:
            raise AccessDenied("it is too long for a token")
        try:
            found = await self._authenticator.identify(token)
        except InvalidToken as error:
            raise AccessDenied(str(error)) from error
        except KeysUnavailable as error:
            raise AccessDenied("the keys to check it with are away, try again") from error
        return Viewer(found.user, found.expires, OPERATOR in found.roles, BODIES in found.roles)


def same_origin(request: web.Request) -> bool:
    """Whether a form was sent from a page of this site: no other page may make a viewer's browser act."""
    origin = request.headers.get("Origin")
    if origin is None:
        # A program with its token in a header: there is no browser that could be misled.
        return "Authorization" in request.headers
    return urlsplit(origin).netloc == request.host


def remember(response: web.StreamResponse, token: str, viewer: Viewer, secure: bool) -> None:
    """Have the browser keep the token until it expires."""
    response.set_cookie(
        COOKIE,
        token,
        max_age=max(0, int(viewer.expires - time.time())),
        httponly=True,
        samesite="Strict",
        secure=secure,
        path="/",
    )
