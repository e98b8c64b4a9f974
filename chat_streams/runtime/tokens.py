"""Authentication by JSON Web Tokens (RFC 7519): an identity, or ``InvalidToken``; a shared key or a JWKS URL."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple

import jwt

from chat_streams.model.errors import ExpiredToken, InvalidToken
from chat_streams.model.ids import is_id
from chat_streams.runtime.jwks import Fetch, RemoteKeys, fetch
from chat_streams.runtime.key_set import ALGORITHMS
from chat_streams.runtime.settings import Settings

ALGORITHM: Final = "HS256"
FAR: Final = 253_402_300_800
"""The year 10000, in s since the epoch. A later time is in ms, or none (``1e400``), and no number to reckon with."""

VIEWER: Final = "viewer"
"""The role that may see the inspector's pages."""
OPERATOR: Final = "operator"
"""The role that may, besides, do what the pages offer: redrive dead letters, start an audit."""
BODIES: Final = "bodies"
"""The role that may, as a viewer or operator, read what people write."""
ROLES: Final = (VIEWER, OPERATOR, BODIES)

# The claims are judged here: PyJWT takes "true" and "7" for times, and an empty audience for none.
_SIGNATURE_ONLY: Final[Any] = {f"verify_{claim}": False for claim in ("exp", "nbf", "iat", "aud", "iss", "sub", "jti")}


class Identity(NamedTuple):
    """The identity in a token: the user, until when it holds (s since the epoch), and the roles in the inspector."""

    user: str
    expires: float
    roles: frozenset[str] = frozenset()


class Rules(NamedTuple):
    """Demands on a token besides its signature; ``leeway`` is how far two clocks may be apart, in s."""

    audiences: frozenset[str]
    issuer: str | None
    leeway: float


class Authenticator:
    """A check of tokens; creating it raises ``SettingsError`` when no key is configured."""

    def __init__(self, settings: Settings, fetch: Fetch = fetch) -> None:
        self._rules = Rules(settings.audiences(), settings.jwt_issuer, settings.jwt_leeway)
        self._remote = RemoteKeys(settings.jwks_url, fetch) if settings.jwks_url else None
        self._key = "" if self._remote else settings.jwt_key()

    async def run(self) -> None:
        """Keep the keys behind a JWKS URL up to date, until this task is cancelled."""
        if self._remote is not None:
            await self._remote.run()
        # A shared key stays as it is.
        await asyncio.Event().wait()

    @property
    def has_keys(self) -> bool:
        """False while no token could be checked."""
        return self._remote is None or self._remote.are_current

    async def identify(self, token: str) -> Identity:
        """Return the identity that a token proves; raises ``InvalidToken``, ``ExpiredToken`` or ``KeysUnavailable``."""
        # Of base64 alone; of others, half an emoji could not even be encoded.
        if not token.isascii():
            raise InvalidToken("it is no JWT")
        claims = _verify(token, [self._key], ALGORITHM) if self._remote is None else await self._verify_remote(token)
        return identity_of(claims, self._rules, time.time())

    async def _verify_remote(self, token: str) -> dict[str, Any]:
        assert self._remote is not None
        try:
            header = jwt.get_unverified_header(token)
        except jwt.PyJWTError as error:
            raise _refusal(error) from error
        algorithm, key_id = header.get("alg"), header.get("kid")
        if algorithm not in ALGORITHMS:
            raise InvalidToken(f"its algorithm is none of {', '.join(ALGORITHMS)}")
        if not isinstance(key_id, str):
            raise InvalidToken("it does not name its key (kid)")
        return _verify(token, await self._remote.find(key_id, algorithm), algorithm)


def _verify(token: str, keys: Sequence[jwt.PyJWK | str], algorithm: str) -> dict[str, Any]:
    """Return the claims that one of the keys has signed; raises ``InvalidToken``."""
    failure = jwt.PyJWTError("there is no key")
    for key in keys:
        try:
            return jwt.decode(token, key, algorithms=[algorithm], options=_SIGNATURE_ONLY)
        except jwt.PyJWTError as error:
            failure = error
    raise _refusal(failure) from failure


def _refusal(error: jwt.PyJWTError) -> InvalidToken:
    # It goes into a close frame, and some errors quote the token's header.
    return InvalidToken(f"{type(error).__name__}: {error}".encode("ascii", "backslashreplace").decode())


def identity_of(claims: Mapping[str, Any], rules: Rules, now: float) -> Identity:
    """Return the identity that signed claims give.

    Raises ``InvalidToken``, also ``ExpiredToken``.

    Args:
        claims: Payload of a token whose signature is good.
        rules: Demands on them.
        now: The present time, in s since the epoch.
    """
    expires = _time(claims, "exp")
    if expires is None:
        raise InvalidToken("it does not say when it expires (exp)")
    for name in ("nbf", "iat"):
        if (begins := _time(claims, name)) is not None and begins > now + rules.leeway:
            raise InvalidToken(f"it is not valid yet ({name})")
    _check_audience(claims, rules.audiences)
    if rules.issuer is not None and claims.get("iss") != rules.issuer:
        raise InvalidToken("its issuer is not the one of CHAT_JWT_ISSUER (iss)")
    user, roles = claims.get("sub"), claims.get("roles", [])
    if not is_id(user):
        raise InvalidToken("its subject is no user id (sub)")
    if not isinstance(roles, list) or not all(isinstance(role, str) for role in roles):
        raise InvalidToken("its roles are no list of texts")
    if expires <= now - rules.leeway:
        raise ExpiredToken("it has expired")
    return Identity(user, expires + rules.leeway, frozenset(roles))


def _time(claims: Mapping[str, Any], name: str) -> int | float | None:
    """Return a time of a token in s since the epoch, None where it has none; raises ``InvalidToken``.

    Below ``-FAR`` lies no time either, but what is long past may be so by any number.
    """
    value = claims.get(name)
    if value is None:
        return None
    # True is a number to Python, and nothing compares with NaN.
    if isinstance(value, bool) or not isinstance(value, int | float) or value != value or value > FAR:
        raise InvalidToken(f"its {name} is no time in seconds since 1970")
    return max(value, -FAR)


def _check_audience(claims: Mapping[str, Any], wanted: frozenset[str]) -> None:
    """Raise ``InvalidToken`` unless a token is for us (RFC 7519, 4.1.3), or neither it nor we name an audience."""
    if "aud" not in claims:
        if wanted:
            raise InvalidToken("it is for no audience, one of CHAT_JWT_AUDIENCE is wanted (aud)")
        return
    audience = claims["aud"]
    named = [audience] if isinstance(audience, str) else audience
    if not isinstance(named, list) or not any(isinstance(name, str) and name in wanted for name in named):
        setting = "is none of CHAT_JWT_AUDIENCE" if wanted else "is somebody, and CHAT_JWT_AUDIENCE is not set"
        raise InvalidToken(f"its audience {setting} (aud)")


def mint(secret: str, user: str, ttl_s: int, roles: Sequence[str] = ()) -> str:
    """Return a new token, for development and tests.

    Raises ``ValueError`` when ``user`` is not a user id.

    Args:
        secret: Key to sign it with (HS256).
        user: Id of the user.
        ttl_s: Seconds until the token expires.
        roles: Roles of the user in the inspector.
    """
    if not is_id(user):
        raise ValueError(f"{user[:60]!r} is no user id: 1-128 characters of A-Z a-z 0-9 . _ ~ @ : -")
    claims: dict[str, Any] = {"sub": user, "exp": int(time.time()) + ttl_s}
    return jwt.encode(claims | ({"roles": list(roles)} if roles else {}), secret, algorithm=ALGORITHM)
