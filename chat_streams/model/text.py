"""Text of others, for a terminal: what would move the cursor, hide, or turn the direction of writing is escaped."""

from __future__ import annotations

import re
from typing import Final

# C0, C1 and DEL; what separates lines; marks, embeddings, overrides and isolates of direction; and what is invisible.
# Not the joiners U+200C and U+200D: emoji of several people, and words in Persian and Hindi, need them.
_UNSAFE: Final = re.compile(
    "[\x00-\x1f\x7f-\x9f\u00ad\u061c\u180e\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb\ud800-\udfff"
    "\U000e0000-\U000e00ff\U000e01f0-\U000e0fff]"
)
_SHORT: Final = {"\n": r"\n", "\r": r"\r", "\t": r"\t"}


def escaped(text: str, keep: str = "") -> str:
    r"""Return a text with ``\n``, ``\u001b`` and the like, as JSON has them, for characters that steer a terminal.

    So another's text can imitate no line of its own. Those in ``keep`` stay.
    """
    return _UNSAFE.sub(lambda found: found[0] if found[0] in keep else _escape(found[0]), text)


def _escape(character: str) -> str:
    units = character.encode("utf-16-be", "surrogatepass").hex()
    return _SHORT.get(character) or "".join(f"\\u{units[n : n + 4]}" for n in range(0, len(units), 4))
