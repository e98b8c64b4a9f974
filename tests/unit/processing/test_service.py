"""The web server of each Faust app: which pages it has, and where it listens."""

from __future__ import annotations

import json
import os
import subprocess
import sys

from docker.local.layout import ROOT

PROGRAM = """
import json
from chat_streams import history, inspector, messaging, notification

found = {}
for module in (messaging, notification, history, inspector):
    app = module.app
    app.web.init_server()
    routes = sorted({(route.method, route.resource.canonical) for route in app.web.web_app.router.routes()})
    found[app.conf.id] = {"bind": app.conf.web_bind, "routes": routes}
print(json.dumps(found))
"""
OPEN = {"/healthz", "/readyz", "/metrics"}
"""Pages that need no token: what probes and Prometheus ask."""


def test_a_worker_shows_nothing_but_its_health_and_its_metrics_and_listens_on_loopback() -> None:
    switches = ("DEBUG", *(f"WEB_{name}_ENABLED" for name in ("STATS", "GRAPH", "METRICS", "TABLES", "ROUTER")))
    environment = os.environ | {"CHAT_JWT_SECRET": "x" * 32} | {f"APP_{switch}": "1" for switch in switches}
    environment.pop("WEB_BIND", None)
    done = subprocess.run([sys.executable, "-c", PROGRAM], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found.keys() == {"messaging", "notification", "history", "inspector"}
    for name, app in found.items():
        assert app["bind"] == "127.0.0.1"
        if name != "inspector":
            assert {path for _, path in app["routes"]} == OPEN
            assert {method for method, _ in app["routes"]} <= {"GET", "HEAD"}
    # The inspector's own have tests of theirs, for which they are asked from its router, too.
    pages = {path for _, path in found["inspector"]["routes"]}
    assert pages > OPEN
    assert not [
        path for path in pages if path.startswith(("/assignment", "/graph", "/table", "/router", "/performance"))
    ]
