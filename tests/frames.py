"""Text frames that clients of other makers have sent, and the right answers: an error about one object is that alone.

Unit tests run them through the parser and the check of bodies, integration tests through a gateway.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final, NamedTuple

MOST_LEVELS: Final = 128
"""The deepest nesting of a body (docs/protocol.md)."""


class Case(NamedTuple):
    """A frame to send after ``welcome``, and what comes back: in any order, and nothing else."""

    name: str
    frame: str
    sent: tuple[str, ...] = ()
    refused: tuple[tuple[str, str], ...] = ()
    """The (id, code) of errors about messages."""
    refused_requests: tuple[tuple[str, str], ...] = ()
    """The (ref, code) of errors about requests."""
    refused_unnamed: tuple[str, ...] = ()
    """The codes of errors that name neither."""
    pong: tuple[str, ...] = ()
    pages: tuple[str, ...] = ()
    """The refs of requests for history that are answered."""
    close: int | None = None


def array(objects: Iterable[str]) -> str:
    """Return the text of a JSON array."""
    return f"[{','.join(objects)}]"


def send(message_id: str, body: str, to: str = "bob") -> str:
    """Return the text of a ``send``, of which id, recipient and body are taken as they are."""
    return f'{{"type":"send","id":"{message_id}","to":"{to}","body":{body}}}'


def ping(more: str = "", ref: str = '"7"') -> str:
    """Return the text of a ``ping``, with further fields."""
    return f'{{"type":"ping","ref":{ref}{more}}}'


def page(fields: str) -> str:
    """Return the text of a request for history."""
    return f'{{"type":"history","ref":"h",{fields}}}'


def arrays(levels: int) -> str:
    """Return arrays in arrays."""
    return "[" * levels + "]" * levels


def objects(levels: int) -> str:
    """Return objects in objects, whose keys look like brackets."""
    return '{"]}\\"":' * levels + "0" + "}" * levels


def beside(name: str, body: str) -> Case:
    """A body that is refused, between two that are not."""
    frame = array([send("g1", '"before"'), send("bad", body), send("g2", '"after"')])
    return Case(name, frame, sent=("g1", "g2"), refused=(("bad", "bad_body"),))


def skipped(name: str, value: str) -> Case:
    """A value of a field that nobody knows."""
    return Case(name, ping(f',"x":{value}'), pong=("7",))


def refused_page(name: str, fields: str) -> Case:
    """A request for history that is no request."""
    return Case(name, page(fields), refused_requests=(("h", "bad_frame"),))


HALF: Final = r"\ud83d"
WHOLE: Final = r"\ud83d\ude00"
LAST_HALF: Final = r"\ude00"

CASES: Final = [
    # Halves of surrogate pairs: JSON allows them, a client cuts a string into them, few parsers take them.
    beside("half an emoji in a body", f'"half {HALF}"'),
    beside("its last half", f'"{LAST_HALF} half"'),
    beside("halves in the wrong order", f'"{LAST_HALF}{HALF}"'),
    beside("half before a whole one", f'"{HALF}{WHOLE}"'),
    beside("half behind a whole one", f'"{WHOLE}{LAST_HALF}"'),
    beside("half before a letter", rf'"{HALF}\u0041"'),
    beside("half in capitals, behind an escaped backslash", r'"\\\uD83D"'),
    beside("half an emoji in a key of a body", f'{{"{HALF}":1}}'),
    beside("half an emoji deep in a body", f'[{{"a":[1,"{HALF}"]}}]'),
    beside("half an emoji as the body's last character", f'"{HALF}"'),
    Case("a whole emoji, escaped", send("g1", f'"{WHOLE}"'), sent=("g1",)),
    Case(
        "a whole emoji beside half a one",
        array([send("g1", f'"{WHOLE}"'), send("bad", f'"{HALF}"')]),
        sent=("g1",),
        refused=(("bad", "bad_body"),),
    ),
    Case("a backslash and the letters of half an emoji", send("g1", r'"\\ud83d"'), sent=("g1",)),
    Case(
        "the same beside half an emoji",
        array([send("g1", r'"\\ud83d\\"'), send("bad", f'"{HALF}"')]),
        sent=("g1",),
        refused=(("bad", "bad_body"),),
    ),
    Case(
        "half an emoji in an id",
        array([send("g1", "1"), send(f"x{HALF}", "1"), send("g2", "2")]),
        sent=("g1", "g2"),
        refused_unnamed=("bad_frame",),
    ),
    Case(
        "half an emoji in a recipient",
        array([send("g1", "1"), send("bad", "1", to=HALF)]),
        sent=("g1",),
        refused=(("bad", "bad_frame"),),
    ),
    Case("half an emoji in an id and in its body", send(HALF, f'"{HALF}"'), refused_unnamed=("bad_frame",)),
    Case("half an emoji in a ref", ping(ref=f'"{HALF}"'), refused_unnamed=("bad_frame",)),
    Case("half an emoji in a type", f'{{"type":"{HALF}","ref":"7"}}', refused_requests=(("7", "unknown_type"),)),
    Case(
        "half an emoji in a position",
        f'[{{"type":"ack","pos":"{HALF}"}},{ping()}]',
        refused_unnamed=("bad_frame",),
        pong=("7",),
    ),
    refused_page("half an emoji in a cursor", f'"with":"bob","before":"{HALF}"'),
    Case(
        "half an emoji in the first of two refs",
        f'{{"type":"ping","ref":"{HALF}","ref":"7"}}',
        refused_requests=(("7", "bad_frame"),),
    ),
    skipped("half an emoji in a field nobody knows", f'"{HALF}"'),
    Case("half an emoji in the name of a field nobody knows", f'{{"{HALF}":1,{ping()[1:]}', pong=("7",)),
    Case("half an emoji in a field of another type of frame", ping(f',"body":"{HALF}","to":"{HALF}"'), pong=("7",)),
    Case(
        "half an emoji where an object should be",
        array([f'"{HALF}"', ping()]),
        refused_unnamed=("bad_frame",),
        pong=("7",),
    ),
    # Numbers
    beside("number out of range", "1e400"),
    beside("number out of range, negative, in an array", "[-1e999]"),
    skipped("number out of range in a field nobody knows", "1e999"),
    refused_page("number out of range as a limit", '"with":"bob","limit":1e400'),
    # Depth
    Case("body 64 levels deep", send("g1", arrays(64)), sent=("g1",)),
    Case("arrays as deep as allowed", send("g1", arrays(MOST_LEVELS)), sent=("g1",)),
    Case("objects as deep as allowed", send("g1", objects(MOST_LEVELS)), sent=("g1",)),
    Case("many arrays beside one another", send("g1", array(["[1]"] * 2_000)), sent=("g1",)),
    beside("arrays a level deeper", arrays(MOST_LEVELS + 1)),
    beside("objects a level deeper", objects(MOST_LEVELS + 1)),
    beside("body 1,000 levels deep", arrays(1_000)),
    beside("body 20,000 levels deep", arrays(20_000)),
    beside("body of objects 5,000 levels deep", objects(5_000)),
    skipped("a field nobody knows 2,000 levels deep", arrays(2_000)),
    skipped("a field nobody knows 100,000 levels deep", arrays(100_000)),
    skipped("a field nobody knows with deep objects and half an emoji", f'[{objects(2_000)},"{HALF}",{arrays(3_000)}]'),
    Case("a deep field nobody knows before the others", f'{{"x":{arrays(2_000)},{ping()[1:]}', pong=("7",)),
    Case(
        "a ref 2,000 levels deep", array([ping(ref=arrays(2_000)), ping()]), refused_unnamed=("bad_frame",), pong=("7",)
    ),
    Case(
        "an unknown type 2,000 levels deep",
        f'{{"type":"new","ref":"7","x":{arrays(2_000)}}}',
        refused_requests=(("7", "unknown_type"),),
    ),
    Case(
        "an array 2,000 levels deep where an object should be",
        array([arrays(2_000), ping()]),
        refused_unnamed=("bad_frame",),
        pong=("7",),
    ),
    Case("a frame that is an array 2,000 levels deep", arrays(2_000), refused_unnamed=("bad_frame",)),
    # Fields
    Case("limit as 1.0", page('"with":"bob","limit":1.0'), pages=("h",)),
    Case("limit as 1e2", page('"with":"bob","limit":1e2'), pages=("h",)),
    Case("limit null means the default", page('"with":"bob","limit":null'), pages=("h",)),
    Case("cursor null means the newest page", page('"with":"bob","before":null'), pages=("h",)),
    refused_page("limit as 1.5", '"with":"bob","limit":1.5'),
    refused_page("cursor that no page gave", '"with":"bob","before":"garbage"'),
    refused_page("cursor of a range that is none", '"after":"0-0","until":"1-0","before":"garbage"'),
    # Blank frames, and what stands around JSON
    Case("empty frame", ""),
    Case("a newline, as some clients keep a connection alive", "\n"),
    Case("spaces and tabs", " \t\r\n "),
    Case("a byte order mark before JSON", "\ufeff" + ping(), pong=("7",)),
    Case("a byte order mark before an array", "\ufeff" + array([ping()]), pong=("7",)),
    Case("a byte order mark alone", "\ufeff"),
    Case("spaces around JSON", f"  \n{ping()}\n", pong=("7",)),
    Case("an array with a null", array(["null", ping()]), refused_unnamed=("bad_frame",), pong=("7",)),
    Case("an empty array", "[]"),
    # No JSON
    Case("not JSON", "hello", close=4503),
    Case("two objects, a line each", f"{ping()}\n{ping(ref='8')}", close=4503),
    Case("a byte order mark behind JSON", ping() + "\ufeff", close=4503),
    Case("two byte order marks", "\ufeff\ufeff" + ping(), close=4503),
    Case("a space that is none of JSON's", "\u00a0" + ping(), close=4503),
    Case("an object that does not end, with half an emoji", f'{{"type":"ping","x":"{HALF}"', close=4503),
    Case("half an emoji outside of a string", HALF, close=4503),
    Case("an escape that does not end, behind half an emoji", rf'{{"x":"{HALF}\u12"}}', close=4503),
    Case("a field nobody knows, deep, with a bracket too few", ping(f',"x":{arrays(2_000)[1:]}'), close=4503),
    Case("a field nobody knows, deep, with a bracket too many", ping(f',"x":{arrays(2_000)}]'), close=4503),
    Case(
        "a field nobody knows, deep, with brackets of two kinds", ping(f',"x":{"[" * 2_000}{"}" * 2_000}'), close=4503
    ),
    Case("a field nobody knows, deep, with a word in it", ping(f',"x":{"[" * 2_000}hello{"]" * 2_000}'), close=4503),
    Case("a string that does not end, deep", ping(f',"x":{"[" * 2_000}"{"]" * 2_000}'), close=4503),
    Case("brackets that do not end", "[" * 100_000, close=4503),
]
"""The cases; each stands for a kind."""
