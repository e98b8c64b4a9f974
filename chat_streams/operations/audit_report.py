"""The report of an audit as JSON values, and the meaning of each fate in words, for the command and the page."""

from __future__ import annotations

from typing import Any

from chat_streams.operations.audit import Options
from chat_streams.operations.audit_rules import Fate, Report

MOST_KEPT = 50
"""The largest number of findings in a report that is stored."""
MEANINGS = {
    Fate.ACKNOWLEDGED: "every device of the recipient has it",
    Fate.PENDING: "in the inbox, for a device that has not acknowledged it",
    Fate.EXPIRED: "older than CHAT_INBOX_TTL; its recipient is told 'missed'",
    Fate.OVERFLOWED: "past the inbox's quota, in history only; its recipient is told 'missed'",
    Fate.RETRY: "sent again under its id within CHAT_RETRY_WINDOW",
    Fate.DEAD_LETTERED: "in dead_letters; a redriven one counts once more",
    Fate.IN_FLIGHT: "not applied within --wait: does messaging run?",
}


def kept_summary(report: Report, options: Options) -> dict[str, Any]:
    """Return the report as it is stored: with its time ``at``, in ms since the epoch, and the first findings only."""
    found = summary(report, options)
    return found | {"at": report.at, "findings": found["findings"][:MOST_KEPT]}


def summary(report: Report, options: Options) -> dict[str, Any]:
    """Return the report as JSON values."""
    return {
        "clean": report.clean,
        "partitions": options.partitions,
        "user": options.user,
        "messages": report.messages,
        **{fate.replace("-", "_").replace(" ", "_"): report.fates[fate] for fate in Fate},
        "none": report.none,
        "two": report.twice,
        "other_findings": report.others,
        "acknowledgements_in_flight": report.acks_in_flight,
        "history": {
            "checked": report.history_checked,
            "missing": report.history_missing,
            "behind": report.history_behind,
        }
        if options.history
        else None,
        "retention": report.losses.as_json(),
        "findings": [finding.as_json() for finding in report.findings],
        "findings_left_out": report.left_out,
    }
