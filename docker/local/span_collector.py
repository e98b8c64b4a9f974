"""What takes spans by OTLP over HTTP, as a collector of OpenTelemetry does."""

from __future__ import annotations

from typing import NamedTuple

from aiohttp import web
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from docker.local.layout import HOST

PATH = "/v1/traces"


class Taken(NamedTuple):
    """A span; ids in hex, times in ns since the epoch."""

    service: str
    name: str
    trace: str
    id: str
    parent: str
    start: int
    end: int
    attributes: dict[str, str]


class Collector:
    """Keeps all spans it is sent."""

    def __init__(self) -> None:
        self.spans: list[Taken] = []
        self.bodies: list[bytes] = []
        self.url = ""
        app = web.Application()
        app.router.add_post(PATH, self._take)
        self._runner = web.AppRunner(app, access_log=None)

    async def start(self) -> None:
        """Listen on a free port."""
        await self._runner.setup()
        site = web.TCPSite(self._runner, HOST, 0)
        await site.start()
        self.url = f"http://{HOST}:{self._runner.addresses[0][1]}{PATH}"

    async def stop(self) -> None:
        """Listen no more."""
        await self._runner.cleanup()

    async def _take(self, request: web.Request) -> web.Response:
        body = await request.read()
        self.bodies.append(body)
        for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
            (service,) = (a.value.string_value for a in resource.resource.attributes if a.key == "service.name")
            for scope in resource.scope_spans:
                for span in scope.spans:
                    attributes = {a.key: str(a.value.string_value or a.value.bool_value) for a in span.attributes}
                    ids = span.trace_id.hex(), span.span_id.hex(), span.parent_span_id.hex()
                    times = span.start_time_unix_nano, span.end_time_unix_nano
                    self.spans.append(Taken(service, span.name, *ids, *times, attributes))
        return web.Response(content_type="application/x-protobuf")
