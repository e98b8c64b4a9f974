"""The keys of an identity provider (JWKS, RFC 7517): what its answer holds, which keys count, when they are fetched.

Without I/O; times are in seconds of a monotonic clock, and passed in.
"""

from __future__ import annotations

import json
import math
from collections import deque
from collections.abc import Mapping
from typing import Any, Final

import jwt
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey

from chat_streams.model.errors import InvalidToken, KeysUnavailable

ALGORITHMS: Final = ("RS256", "ES256", "EdDSA")
MAX_KEYS: Final = 256
"""Keys in an answer. Each is a computation on a curve, and all of them hold up the event loop."""
RSA_BITS: Final = range(2048, 8193)
"""RFC 7518, 3.3, forbids shorter ones; longer ones take milliseconds for a signature."""
RENEW_S: Final = 290.0
"""Seconds from the begin of a fetch to that of the next: its answer comes before a withdrawn key is 5 minutes old."""
KEEP_S: Final = 3600.0
"""Seconds for which keys count that could not be renewed."""
RETRY_S: Final = 1.0
"""Seconds until a fetch that failed is tried again; each further failure doubles them, up to ``MAX_RETRY_S``."""
MAX_RETRY_S: Final = 30.0
UNKNOWN_FETCHES: Final = 10
"""Fetches in ``BUDGET_S`` for ids that no key has: whoever connects can name one."""
BUDGET_S: Final = 60.0

Keys = Mapping[tuple[str, str], tuple[jwt.PyJWK, ...]]
"""Keys by id and algorithm. One id may stand for several keys of an algorithm: each of them is tried."""


def parse(answer: bytes) -> Keys:
    """Return the keys of an answer with which signatures can be checked; raises ``KeysUnavailable`` for another text.

    Keys for something else, of other algorithms, too short, private or damaged are left out: with a key of a provider's
    next algorithm, the others still count.
    """
    try:
        found = json.loads(answer)
    except (ValueError, RecursionError) as error:
        raise KeysUnavailable("the answer is no JSON") from error
    keys = found.get("keys") if isinstance(found, dict) else None
    if not isinstance(keys, list):
        raise KeysUnavailable("the answer is no key set: a JSON object with a list 'keys' is wanted (RFC 7517, 5)")
    if len(keys) > MAX_KEYS:
        raise KeysUnavailable(f"the answer has {len(keys)} keys, {MAX_KEYS} are allowed")
    by_name: dict[tuple[str, str], tuple[jwt.PyJWK, ...]] = {}
    for member in keys:
        if (key := _usable(member)) is not None:
            name = member["kid"], key.algorithm_name
            by_name[name] = (*by_name.get(name, ()), key)
    return by_name


def _usable(member: Any) -> jwt.PyJWK | None:
    if not isinstance(member, dict) or not isinstance(member.get("kid"), str) or (name := _algorithm(member)) is None:
        return None
    if member.get("use") not in (None, "sig") or not _verifies(member.get("key_ops")):
        return None
    # Whoever can read the private key of a set can sign whatever they want.
    if "d" in member:
        return None
    try:
        key = jwt.PyJWK(member, name)
    except (jwt.PyJWTError, ValueError, TypeError, OverflowError, UnsupportedAlgorithm):
        return None
    if isinstance(key.key, RSAPublicKey) and key.key.key_size not in RSA_BITS:
        return None
    return key


def _algorithm(member: dict[str, Any]) -> str | None:
    """Return the one algorithm that a key is for, by its type; None for one of no use here, or with another ``alg``."""
    match member:
        case {"kty": "RSA"}:
            name = "RS256"
        case {"kty": "EC", "crv": "P-256"}:
            name = "ES256"
        case {"kty": "OKP", "crv": "Ed25519" | "Ed448"}:
            name = "EdDSA"
        case _:
            return None
    return name if member.get("alg") in (None, name) else None


def _verifies(operations: Any) -> bool:
    return operations is None or (isinstance(operations, list) and "verify" in operations)


class KeySet:
    """The keys known at a time, and when they are to be fetched: renewed regularly, and at once for an unknown id."""

    def __init__(self, now: float) -> None:
        self._made = now
        self._keys: Keys = {}
        # Begin of the newest fetch that succeeded, end of the newest that failed, begin of the one under way.
        self._succeeded = -math.inf
        self._failed = -math.inf
        self._began: float | None = None
        self._due = now
        self._failures = 0
        self._wanted = False
        self._unknown_fetches: deque[float] = deque(maxlen=UNKNOWN_FETCHES)

    def find(self, key_id: str, algorithm: str, asked: float, now: float) -> tuple[jwt.PyJWK, ...] | None:
        """Return the keys of an id, or None while a fetch that may bring it is to be waited for: then call again.

        Raises ``InvalidToken`` where keys fetched since ``asked`` have none of that id: the provider, which publishes a
        key before it signs with it, does not know it. Raises ``KeysUnavailable`` where that cannot be said.

        Args:
            key_id: Id of the key that signed a token.
            algorithm: The algorithm that the token names.
            asked: Time of the first call for this token.
            now: The present time.
        """
        if self.are_current(now):
            if (found := self._keys.get((key_id, algorithm))) is not None:
                return found
            if any(key_id == known for known, _ in self._keys):
                raise InvalidToken("its key is for another algorithm")
        if self._failed >= asked:
            raise KeysUnavailable("the key set cannot be fetched")
        if self._succeeded > asked:
            if not self._keys:
                raise KeysUnavailable("the key set is empty")
            raise InvalidToken("nobody knows the key that signed it")
        if self._began is None and not self._want_fetch(now):
            raise KeysUnavailable(f"{UNKNOWN_FETCHES} fetches for unknown keys were made within {BUDGET_S:g} s")
        return None

    def _want_fetch(self, now: float) -> bool:
        """Have the keys fetched at once, for all who wait; returns False when the budget for that is spent."""
        if not self._wanted and self._due > now:
            spent = self._unknown_fetches
            if len(spent) == UNKNOWN_FETCHES and now - spent[0] < BUDGET_S:
                return False
            spent.append(now)
            self._wanted = True
        return True

    @property
    def due(self) -> float:
        """The time at which the next fetch is to begin; past, if at once."""
        return -math.inf if self._wanted else self._due

    def begin(self, now: float) -> None:
        """Note that a fetch begins."""
        self._began, self._wanted = now, False

    def succeed(self, keys: Keys) -> None:
        """Take the keys that the fetch under way has brought: those that are not among them count no more."""
        assert self._began is not None
        self._keys, self._succeeded, self._began = keys, self._began, None
        self._due = self._succeeded + RENEW_S
        self._failures = 0

    def fail(self, now: float, jitter: float) -> None:
        """Note that the fetch under way has failed; ``jitter`` (above 0, up to 1) shortens the time to the next."""
        self._began, self._failed = None, now
        self._due = now + min(MAX_RETRY_S, RETRY_S * 2.0**self._failures) * jitter
        self._failures = min(self._failures + 1, 10)

    def are_current(self, now: float) -> bool:
        """Return whether there are keys, not too old to count."""
        return bool(self._keys) and now - self._succeeded < KEEP_S

    def age(self, now: float) -> float:
        """Return the seconds since the keys were fetched; without any, those that the process has looked for some."""
        return now - (self._succeeded if self._keys else self._made)

    @property
    def ids(self) -> list[str]:
        """The ids of the keys."""
        return sorted({key_id for key_id, _ in self._keys})
