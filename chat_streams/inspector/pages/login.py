"""The login and logout: a form takes the token of a viewer, and a cookie keeps it."""

from __future__ import annotations

from aiohttp import web

from chat_streams.inspector.access import COOKIE, AccessDenied, remember
from chat_streams.inspector.site import LOGIN, LOGOUT, Site
from chat_streams.model.errors import KeysUnavailable


def register(site: Site) -> None:
    """Add ``/login`` and ``/logout``."""

    async def form(request: web.Request) -> web.Response:
        return site.render(request, "login.html", {"error": "", "next": local(request.query.get("next", "/"))})

    async def login(request: web.Request) -> web.StreamResponse:
        form = await request.post()
        token, goal = str(form.get("token", "")).strip(), local(str(form.get("next", "/")))
        try:
            viewer = await site.access.of_token(token)
        except AccessDenied as error:
            return site.render(request, "login.html", {"error": str(error), "next": goal}, 403)
        except KeysUnavailable as error:
            text = f"the keys to check it with are away, try again ({error})"
            return site.render(request, "login.html", {"error": text, "next": goal}, 503)
        response = web.HTTPSeeOther(goal)
        remember(response, token, viewer, request.secure)
        return response

    async def logout(request: web.Request) -> web.StreamResponse:
        response = web.HTTPSeeOther(LOGIN)
        response.del_cookie(COOKIE, path="/")
        return response

    site.router.add_get(LOGIN, form)
    site.router.add_post(LOGIN, login)
    site.router.add_post(LOGOUT, logout)


def local(goal: str) -> str:
    """Return ``goal`` if it is a path of this site, ``/`` otherwise, so that no link can redirect elsewhere."""
    return goal if goal.startswith("/") and not goal.startswith(("//", "/\\")) else "/"
