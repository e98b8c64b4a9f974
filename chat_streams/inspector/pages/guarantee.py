"""The page of the guarantee that each accepted message has exactly one fate: the last audit, and the live balance."""

from __future__ import annotations

from typing import Any, Final

from aiohttp import web

from chat_streams.inspector.access import Viewer
from chat_streams.inspector.ledger import Ledger
from chat_streams.inspector.site import Answer, Site
from chat_streams.operations.audit import Options, audit
from chat_streams.operations.audit_report import MEANINGS, kept_summary
from chat_streams.operations.formats import clock
from chat_streams.runtime.tasks import spawn
from tables import last_audit

PARTS: Final = ("acknowledged", "pending", "expired", "overflowed", "retry", "dead_lettered", "in_flight")
WAIT_S: Final = 10.0


def register(site: Site) -> None:
    """Add ``/guarantee``, and the form that starts an audit."""
    running: dict[str, Any] = {"task": None, "done": 0, "total": 0, "error": None}

    async def model(request: web.Request, viewer: Viewer) -> Answer:
        task = running["task"]
        return Answer(
            {
                "audit": audit_of(site),
                "losses": site.collector.losses.as_json(),
                "live": _live(site) | verdict(site.collector.series.ledger),
                "running": task is not None and not task.done(),
                "progress": running["done"] / running["total"] if running["total"] else 0,
                "audit_error": running["error"],
            }
        )

    def on_failure(error: BaseException) -> None:
        running["error"] = f"{type(error).__name__}: {error}"

    async def start(request: web.Request) -> web.StreamResponse:
        if running["task"] is None or running["task"].done():
            running.update(done=0, total=0, error=None, task=spawn("audit", _audit(site, running), on_failure))
        raise web.HTTPSeeOther("/guarantee")

    site.page("/guarantee", "guarantee.html", model, live="_guarantee.html")
    site.router.add_post("/guarantee", start)


async def _audit(site: Site, running: dict[str, Any]) -> None:
    options = Options(None, None, True, WAIT_S)
    report = await audit(site.settings, options, lambda done, total: running.update(done=done, total=total))
    await last_audit.save(site.cluster, kept_summary(report, options))


def audit_of(site: Site) -> dict[str, Any] | None:
    """Return the last audit: its number of messages of each fate, and whether these add up to the accepted ones."""
    found = site.collector.audit
    if found is None:
        return None
    parts = {name: int(found.get(name, 0)) for name in PARTS}
    wrong = {"lost": int(found.get("none", 0)), "counted twice": int(found.get("two", 0))}
    return {
        "at": found["at"],
        "clean": bool(found["clean"]),
        "accepted": int(found["messages"]),
        "parts": parts,
        "meanings": {str(fate).replace("-", "_").replace(" ", "_"): text for fate, text in MEANINGS.items()},
        "wrong": {name: count for name, count in wrong.items() if count},
        "history": found.get("history"),
        "findings": found.get("findings", [])[:50],
        "adds_up": sum(parts.values()) == int(found["messages"]) and not any(wrong.values()),
    }


def verdict(ledger: Ledger) -> dict[str, Any]:
    """Return whether the live balance adds up, as values for the page.

    ``tone`` is the style to show it in, ``words`` the sentence, ``explained`` the differences that had a reason.
    """
    off = f"{ledger.off:,} accepted and not applied" if ledger.off > 0 else f"{-ledger.off:,} applied and not accepted"
    reasons = "; ".join(reason.text for reason in ledger.reasons)
    under_way = f"; since then {off}, no more than is under way" if ledger.off else ""
    if ledger.wrong:
        tone, words = (
            "bad",
            f"It does NOT add up: {off}, since {clock(ledger.off_since or 0)}, and nothing explains it.",
        )
    elif ledger.exact_at is None:
        tone, words = "grey", "Not known yet: counters agree once nothing is under way for 10 s."
    elif ledger.off_since is not None or reasons:
        tone, words = "wait", f"Counting: {off}. It may be off: {reasons or 'not everybody has said their counts yet'}."
    elif ledger.explained:
        tone, words = "wait", f"It adds up since {clock(ledger.exact_at)}; before that it was off, for a known reason."
    else:
        tone, words = "good", f"It adds up: to the last message at {clock(ledger.exact_at)}{under_way}."
    explained = [reason._asdict() for reason in ledger.explained]
    return {"tone": tone, "words": words, "off": ledger.off, "exact_at": ledger.exact_at, "explained": explained}


def _live(site: Site) -> dict[str, Any]:
    """Return the increase of the counters in the last hour, or since the last audit if that is more recent."""
    found = site.collector.audit
    start = max(site.collector.now() - 3600 * 1000, int(found["at"]) if found else 0)
    rose = site.collector.series.since(start)
    applied = rose.get("appended", 0) + rose.get("retries", 0) + rose.get("overflowed", 0) + rose.get("dead", 0)
    return {
        "since": start,
        "accepted": rose.get("accepted", 0),
        "appended": rose.get("appended", 0),
        "retries": rose.get("retries", 0),
        "overflowed": rose.get("overflowed", 0),
        "dead": rose.get("dead", 0),
        "acknowledged": rose.get("acknowledged", 0),
        "pending_change": rose.get("appended", 0) - rose.get("acknowledged", 0),
        "not_applied": rose.get("accepted", 0) - applied,
        "lag_records": site.collector.watermarks.lag("messaging"),
    }
