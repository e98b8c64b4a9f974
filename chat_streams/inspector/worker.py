"""The Faust app of the inspector: no agents, only its web server, on loopback unless ``--web-bind`` says otherwise."""

from __future__ import annotations

import click
from faust.app.base import BootStrategy

from chat_streams.inspector import pages
from chat_streams.inspector.measured import System
from chat_streams.inspector.site import Site
from chat_streams.model.errors import SettingsError
from chat_streams.processing.lasting import run_lasting
from chat_streams.processing.service import Service
from chat_streams.runtime import descriptors
from chat_streams.runtime.metrics import REGISTRY, Exposition

PORT = 8084


class _WebOnly(BootStrategy):
    # No Kafka client of Faust's own: it would not start while Kafka is away, and then no page could say so.
    enable_kafka = False


class Inspector(Service):
    """The app of the inspector; it starts even if engines are away."""

    BootStrategy = _WebOnly
    producer_only = True

    def __init__(self) -> None:
        super().__init__("inspector", web_port=PORT)
        try:
            self.site = Site(self.settings)
        except SettingsError as error:
            raise click.ClickException(str(error)) from error
        self.exposition = Exposition(REGISTRY, System(self.site.collector))
        self.site.install(self.web.web_app)
        pages.register(self.site)
        run_lasting(self, self.renew_keys)

    def worker_init(self) -> None:
        """Check nothing: the pages say what is missing."""
        descriptors.raise_limit()

    async def renew_keys(self) -> None:
        """Keep the keys for tokens up to date, for as long as this process runs."""
        await self.site.access.run()

    def _add_tasks(self) -> None:
        # No records are applied here, and the collector publishes the statistics, together with what it measures.
        pass

    @property
    def is_ready(self) -> bool:
        """Always true: the pages say what is missing."""
        return True


app = Inspector()
