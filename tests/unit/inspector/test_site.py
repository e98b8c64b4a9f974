"""Access to the inspector: every route, without a token and with one of each role."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, Final, NamedTuple

import pytest
import pytest_asyncio
from aiohttp import ClientSession, web
from aiohttp.test_utils import BaseTestServer, TestServer
from yarl import URL

from chat_streams.inspector import pages
from chat_streams.inspector.site import ASSETS, LOGIN, LOGOUT, OPEN, Site
from chat_streams.model.errors import KeysUnavailable
from chat_streams.runtime.settings import Settings
from chat_streams.runtime.tokens import mint

SECRET = "0123456789abcdef0123456789abcdef"
REACHED: Final = "the page is reached"
NEITHER: Final[tuple[list[str], ...]] = ([], ["bodies"], ["admin", "view"])
"""Roles of tokens that are no viewer's: the first one is that of each user of the chat."""


def token(*roles: str, ttl_s: int = 60) -> str:
    return mint(SECRET, "eve", ttl_s, roles)


@web.middleware
async def reached(request: web.Request, handler: Callable[..., Awaitable[Any]]) -> web.StreamResponse:
    """Answer in place of a page: what lets a request in is looked at, not the engines behind the page."""
    found = request.match_info.route.resource
    if found is not None and found.canonical != LOGIN:
        return web.Response(text=REACHED)
    answer: web.StreamResponse = await handler(request)
    return answer


async def nothing(_: web.Request) -> web.Response:
    return web.Response()


class Route(NamedTuple):
    method: str
    path: str
    template: str


class Inspector(NamedTuple):
    site: Site
    server: BaseTestServer
    session: ClientSession
    routes: list[Route]

    async def ask(self, method: str, path: str, bearer: str | None = None, **headers: str) -> tuple[int, str]:
        """Send a request as a script does; returns status and text."""
        if bearer is not None:
            headers["Authorization"] = f"Bearer {bearer}"
        url = URL(f"{self.server.make_url('')}".rstrip("/") + path, encoded=True)
        async with self.session.request(method, url, headers=headers, allow_redirects=False) as answer:
            return answer.status, await answer.text()


@pytest_asyncio.fixture
async def inspector() -> AsyncIterator[Inspector]:
    site = Site(Settings(jwt_secret=SECRET))
    app = web.Application()
    site.install(app)
    pages.register(site)
    # What Faust's app adds to the same router.
    for path in ("/healthz", "/readyz", "/metrics"):
        app.router.add_get(path, nothing)
    app.middlewares.append(reached)
    app.cleanup_ctx.clear()
    routes = [
        Route(route.method, re.sub(r"\{[^}]*\}", "1", route.resource.canonical), route.resource.canonical)
        for route in app.router.routes()
        if route.resource is not None
    ]
    async with TestServer(app) as server, ClientSession() as session:
        yield Inspector(site, server, session, routes)
    await site.cluster.close()
    await site.history.close()


def demands(route: Route) -> bool:
    return route.template not in OPEN


async def test_nothing_is_open_but_the_login_its_files_the_probes_and_the_metrics(inspector: Inspector) -> None:
    assert {route.template for route in inspector.routes} > OPEN
    assert {LOGIN, ASSETS, "/healthz", "/readyz", "/metrics"} == OPEN
    assert len([route for route in inspector.routes if demands(route)]) > 40
    for method, path, template in inspector.routes:
        status, text = await inspector.ask(method, path)
        if template in OPEN:
            assert status == (403 if method == "POST" else 200), "a form without an origin"
        elif method == "POST":
            assert status == 403, path
        else:
            assert status == (303 if method == "GET" and not path.startswith(("/api/", "/live/")) else 401), path
        assert REACHED not in text or template in OPEN


async def test_each_page_and_call_wants_a_viewer_and_what_does_something_an_operator(inspector: Inspector) -> None:
    does = {route.template for route in inspector.routes if route.method not in ("GET", "HEAD")}
    assert does == {LOGIN, LOGOUT, "/redrive", "/api/redrive", "/guarantee"}
    for method, path, _ in filter(demands, inspector.routes):
        for roles in NEITHER:
            status, text = await inspector.ask(method, path, token(*roles))
            assert status == 403, (path, roles)
            assert REACHED not in text
            if method != "HEAD":
                assert "neither the role viewer nor operator" in text
        writes = method not in ("GET", "HEAD") and path != LOGOUT
        for roles in (["viewer"], ["viewer", "bodies"]):
            status, text = await inspector.ask(method, path, token(*roles))
            assert (status, REACHED in text) == ((403, False) if writes else (200, method != "HEAD")), path
            assert not writes or "role operator" in text
        for roles in (["operator"], ["operator", "bodies"]):
            status, text = await inspector.ask(method, path, token(*roles))
            assert (status, REACHED in text) == (200, method != "HEAD"), path


async def test_a_token_that_has_expired_or_is_forged_opens_nothing(inspector: Inspector) -> None:
    bad = [token("operator", ttl_s=-60), mint("y" * 32, "eve", 60, ["operator"]), "x", "\u00e4", ""]
    for method, path, _ in filter(demands, inspector.routes):
        for each in bad:
            status, text = await inspector.ask(method, path, each)
            assert status in (303, 401), path
            assert REACHED not in text


async def test_a_path_that_looks_like_an_open_one_is_not(inspector: Inspector) -> None:
    for path in (
        *("/static/../api/overview", "/static/1/../../api/overview", "/static/%2e%2e/api/overview", "//api/overview"),
        *("/login/", "/login/../api/overview", "/metrics/../api/overview", "/healthz/x", "/no/such/page", "/static/1"),
        *("/api/overview/../../login", "/%6cogin/x", "/api%2foverview"),
    ):
        status, text = await inspector.ask("GET", path)
        assert status in (303, 401), path
        assert REACHED not in text


async def test_a_page_in_a_browser_offers_the_form_and_says_which_role_is_missing(inspector: Inspector) -> None:
    status, text = await inspector.ask("GET", "/user/bob?x=1", Cookie=f"inspector_token={token()}")
    assert status == 403
    assert "neither the role viewer nor operator" in text
    assert 'name="next" value="/user/bob?x=1"' in text


async def test_the_form_takes_no_token_without_a_role(inspector: Inspector) -> None:
    origin = str(inspector.server.make_url("")).rstrip("/")
    for found, status in ((token(), 403), (token("bodies"), 403), ("x", 403), (token("viewer"), 303)):
        async with inspector.session.post(
            f"{origin}{LOGIN}", data={"token": found, "next": "/"}, headers={"Origin": origin}, allow_redirects=False
        ) as answer:
            assert answer.status == status
            assert ("Set-Cookie" in answer.headers) == (status == 303)


async def test_without_keys_a_token_is_neither_taken_nor_refused(
    inspector: Inspector, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def of_token(_: str) -> Any:
        raise KeysUnavailable("it answers 500")

    monkeypatch.setattr(inspector.site.access, "of_token", of_token)
    for path in ("/", "/api/overview", "/live/overview"):
        assert (await inspector.ask("GET", path, "x"))[0] == 503
    origin = str(inspector.server.make_url("")).rstrip("/")
    async with inspector.session.post(f"{origin}{LOGIN}", data={"token": "x"}, headers={"Origin": origin}) as answer:
        assert answer.status == 503
        assert "try again" in await answer.text()


@pytest.mark.parametrize("header", ["Forwarded", "X-Forwarded-For"])
async def test_metrics_are_not_for_what_comes_through_a_proxy(inspector: Inspector, header: str) -> None:
    assert (await inspector.ask("GET", "/metrics"))[0] == 200
    assert (await inspector.ask("GET", "/metrics", **{header: "203.0.113.7"}))[0] == 403
