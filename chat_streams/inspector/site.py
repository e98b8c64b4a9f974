"""The web site of the inspector: access control, pages and their JSON API, live parts, and errors."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final
from urllib.parse import quote

import jinja2
import structlog
from aiohttp import web

from chat_streams.inspector.access import Access, AccessDenied, RoleMissing, Viewer, same_origin
from chat_streams.inspector.assets import FOLDER, Assets
from chat_streams.inspector.collector import Collector
from chat_streams.inspector.live import Live
from chat_streams.kafka.names import INBOX_REQUESTS, INCOMING_MESSAGES, OUTGOING_MESSAGES, SESSION_EVENTS
from chat_streams.model.errors import (
    ConnectChatError,
    HistoryUnavailable,
    KafkaUnavailable,
    KeysUnavailable,
    RedisUnavailable,
    TopicsError,
)
from chat_streams.model.times import now_ms, utc
from chat_streams.operations import formats
from chat_streams.runtime.metrics import PATH
from chat_streams.runtime.settings import Settings
from chat_streams.runtime.tokens import Authenticator
from tables.chat_history import ChatHistory
from tables.redis_cluster import Cluster

log = structlog.get_logger()

LOGIN: Final = "/login"
LOGOUT: Final = "/logout"
ASSETS: Final = "/static/{version}/{name}"
OPEN: Final = frozenset({LOGIN, ASSETS, "/healthz", "/readyz", PATH})
"""The routes that need no token: how to show one, what that page is made of, and what probes and Prometheus ask."""
NO_OPERATOR: Final = "this needs a token with the role operator: make token USER=… ROLE=operator"
POLICY: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self';"
    " form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
_AWAY: Final = (KafkaUnavailable, RedisUnavailable, HistoryUnavailable, TopicsError)


class NotFound(ConnectChatError):
    """Nothing was found; the text says what was searched, and where."""


@dataclass
class Answer:
    """The values that a page shows: they go to its template and to the JSON API alike."""

    data: dict[str, Any]
    status: int = 200


Model = Callable[[web.Request, Viewer], Awaitable[Answer]]


@dataclass
class Site:
    """The web site: its pages, and the collector, stores and templates they are made from."""

    settings: Settings
    cluster: Cluster = field(init=False)
    history: ChatHistory = field(init=False)
    collector: Collector = field(init=False)
    live: Live = field(default_factory=Live)
    assets: Assets = field(default_factory=Assets)

    def __post_init__(self) -> None:
        self.cluster, self.history = Cluster(self.settings), ChatHistory(self.settings)
        self.collector = Collector(self.settings, self.cluster, self.history)
        self.access = Access(Authenticator(self.settings))
        self.templates = jinja2.Environment(
            loader=jinja2.FileSystemLoader(FOLDER / "templates"),
            autoescape=True,
            undefined=jinja2.StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        self.templates.filters.update(formats.FILTERS)
        self.templates.globals["static"] = f"/static/{self.assets.version}"
        self.templates.globals["incoming_messages"] = INCOMING_MESSAGES
        self.templates.globals["topics_of_a_user"] = (
            INCOMING_MESSAGES,
            SESSION_EVENTS,
            INBOX_REQUESTS,
            OUTGOING_MESSAGES,
        )

    def install(self, app: web.Application) -> None:
        """Add everything but the pages to the application of Faust's web server."""
        app.middlewares.append(self._guard)
        app.cleanup_ctx.append(self.collector.run)
        app.cleanup_ctx.append(self._close)
        router = app.router
        router.add_get(ASSETS, self.assets.serve)
        self.router = router

    async def _close(self, _: web.Application) -> AsyncIterator[None]:
        yield
        await self.cluster.close()
        await self.history.close()

    # Pages

    def page(self, path: str, template: str, model: Model, live: str | None = None, needs: Sequence[str] = ()) -> None:
        """Add a page, its values as JSON under ``/api`` and, with the template ``live``, its live part under ``/live``.

        While an engine that the page ``needs`` is away, it answers 503 at once instead of waiting for the engine.
        """

        async def html(request: web.Request) -> web.StreamResponse:
            answer = await self._answer(request, model, needs)
            return self.render(request, template, answer.data, answer.status)

        async def api(request: web.Request) -> web.StreamResponse:
            answer = await self._answer(request, model, needs)
            return web.json_response(answer.data, status=answer.status, dumps=_dumps)

        self.router.add_get(path, html)
        self.router.add_get("/api" + (path if path != "/" else "/overview"), api)
        if live is not None:

            async def events(request: web.Request) -> web.StreamResponse:
                return await self.live.panel(request, lambda: self._panel(request, live, model))

            self.router.add_get("/live" + (path if path != "/" else "/overview"), events)

    def render(self, request: web.Request, template: str, data: dict[str, Any], status: int = 200) -> web.Response:
        """Render a template with ``data`` and the values that all templates use."""
        text = self.templates.get_template(template).render(
            {
                "viewer": request.get("viewer"),
                "path": request.path,
                "engines": list(self.collector.engines.values()),
                "now": now_ms(),
                "statistics_trouble": self.collector.statistics_trouble,
                "live_path": "/live" + (request.path_qs if request.path != "/" else "/overview"),
                **data,
            }
        )
        return web.Response(text=text, content_type="text/html", status=status)

    async def _answer(self, request: web.Request, model: Model, needs: Sequence[str] = ()) -> Answer:
        for engine in map(self.collector.engines.__getitem__, needs):
            if engine.up is False:
                text = f"{engine.name} is away since {utc(engine.since)} ({engine.error})"
                raise web.HTTPServiceUnavailable(text=text, headers={"Retry-After": "2"})
        try:
            return await model(request, request["viewer"])
        except NotFound as error:
            raise web.HTTPNotFound(text=str(error)) from error
        except _AWAY as error:
            raise web.HTTPServiceUnavailable(text=str(error), headers={"Retry-After": "2"}) from error

    async def _panel(self, request: web.Request, template: str, model: Model) -> str:
        try:
            answer = await self._answer(request, model)
            return self.render(request, template, answer.data).text or ""
        except web.HTTPException as error:
            return self.render(request, "_away.html", {"what": error.text}).text or ""

    # Access control

    @web.middleware
    async def _guard(self, request: web.Request, handler: Callable[..., Awaitable[Any]]) -> web.StreamResponse:
        try:
            response: web.StreamResponse = await self._guarded(request, handler)
        except web.HTTPException as error:
            response = error if error.status < 400 else self._error(request, error.status, error.text or "")
        if not response.prepared:
            response.headers.update(
                {
                    "Content-Security-Policy": POLICY,
                    "X-Content-Type-Options": "nosniff",
                    # With "no-referrer", browsers would hide the origin of our own forms from us, too.
                    "Referrer-Policy": "same-origin",
                    "X-Frame-Options": "DENY",
                }
            )
            response.headers.setdefault("Cache-Control", "no-store")
        return response

    async def _guarded(self, request: web.Request, handler: Callable[..., Awaitable[Any]]) -> web.StreamResponse:
        if request.method not in ("GET", "HEAD") and not same_origin(request):
            raise web.HTTPForbidden(text="this form was not sent from a page of the inspector")
        if request.path == PATH and not request.headers.keys().isdisjoint(("Forwarded", "X-Forwarded-For")):
            raise web.HTTPForbidden(text="metrics are not for what comes through a proxy")
        # By the route and not by the path: what is open is what the router has found, and nothing else.
        resource = request.match_info.route.resource
        route = "" if resource is None else resource.canonical
        if route not in OPEN:
            is_page = request.method == "GET" and not request.path.startswith(("/api/", "/live/"))
            try:
                viewer = request["viewer"] = await self.access.viewer(request)
            except KeysUnavailable as error:
                text = f"the keys to check tokens with are away: {error}"
                raise web.HTTPServiceUnavailable(text=text, headers={"Retry-After": "5"}) from error
            except RoleMissing as error:
                if not is_page:
                    raise web.HTTPForbidden(text=f"the token is not for this: {error}") from error
                return self.render(request, "login.html", {"error": str(error), "next": request.path_qs}, 403)
            except AccessDenied as error:
                if not is_page:
                    raise web.HTTPUnauthorized(text=f"a token is wanted: {error}") from error
                if request.headers.get("Sec-Fetch-Site") == "cross-site":
                    # A request from a link on another site comes without the SameSite cookie. The page that answers it
                    # loads the address again from this site, with the cookie.
                    return self.render(request, "again.html", {"url": request.path_qs})
                return web.HTTPSeeOther(f"{LOGIN}?next={quote(request.path_qs)}")
            # Whatever does something has such a method: a new page needs no check of its own.
            if request.method not in ("GET", "HEAD") and route != LOGOUT and not viewer.operator:
                raise web.HTTPForbidden(text=NO_OPERATOR)
        try:
            answer: web.StreamResponse = await handler(request)
        except web.HTTPException:
            raise
        except Exception as error:
            log.exception("a page failed", path=request.path)
            raise web.HTTPInternalServerError(text=f"the page failed: {type(error).__name__}") from error
        return answer

    def _error(self, request: web.Request, status: int, text: str) -> web.Response:
        if text.startswith("404:"):
            text = f"there is no page {request.path[:100]}"
        if request.path.startswith("/api/"):
            return web.json_response({"error": text}, status=status)
        if request.get("viewer") is None:
            return web.Response(text=text, status=status)
        # The answer to a request of htmx is put into a page that is there already.
        template = "_away.html" if "HX-Request" in request.headers else "error.html"
        return self.render(request, template, {"status": status, "what": text}, status)


def _dumps(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, default=_plain)


def _plain(value: Any) -> Any:
    if hasattr(value, "_asdict"):
        return value._asdict()
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, (set, frozenset)):
        return sorted(value)
    return str(value)
