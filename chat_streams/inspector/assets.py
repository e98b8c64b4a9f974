"""The scripts, styles and pictures of the inspector's pages, served below an address that names their version.

A script imports other scripts by relative addresses, so all scripts of a page are of one version, and a browser may
cache them for ever: another version has other addresses.
"""

from __future__ import annotations

import hashlib
import mimetypes
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import Final

from aiohttp import web

FOLDER: Final = Path(str(files("chat_streams.inspector")))
LIBRARIES: Final = {
    "htmx.min.js": FOLDER / "web/node_modules/htmx.org/dist/htmx.min.js",
    "uPlot.iife.min.js": FOLDER / "web/node_modules/uplot/dist/uPlot.iife.min.js",
    "uPlot.min.css": FOLDER / "web/node_modules/uplot/dist/uPlot.min.css",
}
_FOR_EVER: Final = "public, max-age=31536000, immutable"
# Not the system's own table, which differs from machine to machine: a browser runs no script module of a wrong type.
_TYPES: Final = mimetypes.MimeTypes()


class Assets:
    """All files, read once at the start, so that a version always serves the bytes it was computed from."""

    def __init__(self, folder: Path = FOLDER / "static", libraries: Mapping[str, Path] = LIBRARIES) -> None:
        paths = {path.name: path for path in folder.iterdir()} | dict(libraries)
        self._contents = {name: path.read_bytes() for name, path in sorted(paths.items()) if path.is_file()}
        digest = hashlib.sha256()
        for name, content in self._contents.items():
            digest.update(f"{name} {len(content)}\n".encode() + content)
        self.version = digest.hexdigest()[:16]

    async def serve(self, request: web.Request) -> web.Response:
        """Answer with the file ``name``.

        A page that was served before a restart asks for an older ``version``: it gets the present file, uncached.
        """
        name, version = request.match_info["name"], request.match_info["version"]
        if name not in self._contents:
            raise web.HTTPNotFound(
                text=f"no file {name[:60]}; a browser library needs 'make setup', then a restart of the inspector"
            )
        return web.Response(
            body=self._contents[name],
            content_type=_TYPES.guess_type(name)[0] or "application/octet-stream",
            headers={"Cache-Control": _FOR_EVER if version == self.version else "no-store"},
        )
