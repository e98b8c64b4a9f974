"""The pages of dead letters: grouped by their reason, one by one, and the form with which operators redrive them."""

from __future__ import annotations

import re
from typing import Any, Final

from aiohttp import web

from chat_streams.inspector.access import Viewer
from chat_streams.inspector.numbers import number_of
from chat_streams.inspector.site import Answer, NotFound, Site
from chat_streams.model import errors
from chat_streams.operations import redrive_service
from chat_streams.operations.dead_letters import Filter

NEWEST: Final = 500
_VARYING: Final = re.compile(r"[0-9]+|0x[0-9a-f]+|'[^']*'|\"[^\"]*\"")


def kind_of(reason: str) -> str:
    """Return a reason without the parts that differ from record to record: numbers and quoted texts."""
    return _VARYING.sub("…", reason)[:160]


def groups_of(letters: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Group dead letters by app, topic and kind of reason; the group with the most open ones comes first."""
    groups: dict[tuple[str, str, str], dict[str, Any]] = {}
    for letter in letters:
        key = letter["app"], letter["topic"], kind_of(letter["reason"])
        group = groups.setdefault(
            key, {"app": key[0], "topic": key[1], "reason": key[2], "open": 0, "redriven": 0, "letters": []}
        )
        group["redriven" if letter["redriven_at"] else "open"] += 1
        group["letters"].append(letter)
        group["last_at"] = letter["last_at"]
    for group in groups.values():
        group["letters"].reverse()
    return sorted(groups.values(), key=lambda g: -g["open"])


def register(site: Site) -> None:
    """Add ``/dead-letters``, ``/dead-letters/{number}`` and the form to redrive."""

    async def listing(request: web.Request, viewer: Viewer) -> Answer:
        wanted = Filter(reason=request.query.get("reason") or None)
        found = await redrive_service.listing(site.settings, wanted, NEWEST)
        return Answer({"matching": found.matching, "newest": NEWEST, "groups": groups_of(found.as_json())})

    async def details(request: web.Request, viewer: Viewer) -> Answer:
        number = request.match_info["number"]
        try:
            found = await redrive_service.details(site.settings, int(number), viewer.bodies)
        except errors.RedriveRefused as error:
            raise NotFound(f"There is no dead letter {number} in the topic dead_letters.") from error
        # A traceback may quote the bodies of messages.
        return Answer(found if viewer.bodies else found | {"traceback": None})

    async def redrive(request: web.Request) -> web.StreamResponse:
        form = await request.post()
        chosen = {number_of(str(text)) for text in form.getall("number", [])}
        numbers = sorted(number for number in chosen if number is not None)[:NEWEST]
        dry_run, lines, warnings = form.get("go") != "yes", list[str](), list[str]()
        if not numbers:
            warnings.append("none was chosen")
        else:
            try:
                await redrive_service.redrive(
                    site.settings,
                    numbers,
                    Filter(),
                    dry_run=dry_run,
                    again=form.get("again") == "yes",
                    say=lines.append,
                    warn=warnings.append,
                )
            except errors.RedriveRefused as error:
                warnings.append(str(error))
        data = {
            "numbers": numbers,
            "dry_run": dry_run,
            "again": form.get("again") == "yes",
            "lines": lines,
            "warnings": warnings,
        }
        if request.path.startswith("/api/"):
            return web.json_response(data)
        return site.render(request, "redrive.html", data)

    site.page("/dead-letters", "dead_letters.html", listing, needs=("Kafka",))
    site.page("/dead-letters/{number:[0-9]{1,15}}", "dead_letter.html", details, needs=("Kafka",))
    site.router.add_post("/redrive", redrive)
    site.router.add_post("/api/redrive", redrive)
