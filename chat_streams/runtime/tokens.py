"""Authentication by JSON Web Tokens (RFC 7519): an identity, or ``InvalidToken``; a shared key or a JWKS URL."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from typing import Any, Final, NamedTuple

import jwt
from jwt.exceptions import PyJWKClientConnectionError

from chat_streams.model.errors import ExpiredToken, InvalidToken, KeysUnavailable
from chat_streams.model.ids import is_id
from chat_streams.runtime.settings import Settings

ALGORITHM: Final = "HS256"
LEEWAY_S: Final = 5
JWKS_ALGORITHMS: Final = ("RS256", "ES256", "EdDSA")
JWKS_TIMEOUT_S: Final = 5


class Identity(NamedTuple):
    """The identity in a token: the user, its expiry (s since the epoch), and the roles in the inspector."""

    user: str
    expires: float
    roles: frozenset[str] = frozenset()


class Authenticator:
    """A check of tokens; creating it raises ``SettingsError`` when no key is configured."""

    def __init__(self, settings: Settings) -> None:
        self._jwks = (
            jwt.PyJWKClient(settings.jwks_url, cache_keys=True, timeout=JWKS_TIMEOUT_S) if settings.jwks_url else None
        )
        self._key = "" if self._jwks else settings.jwt_key()

    async def identify(self, token: str) -> Identity:
        """Return the identity that a token proves; raises ``InvalidToken``, ``ExpiredToken`` or ``KeysUnavailable``."""
        try:
            if self._jwks is None:
                claims = self._decode(token, self._key, [ALGORITHM])
            else:
                key = await asyncio.to_thread(self._jwks.get_signing_key_from_jwt, token)
                claims = self._decode(token, key.key, list(JWKS_ALGORITHMS))
        except PyJWKClientConnectionError as error:
            raise KeysUnavailable(str(error)) from error
        except jwt.ExpiredSignatureError as error:
            raise ExpiredToken("it has expired") from error
        except jwt.PyJWTError as error:
            raise InvalidToken(f"{type(error).__name__}: {error}") from error
        if not is_id(claims["sub"]):
            raise InvalidToken("its subject is no user id")
        roles = claims.get("roles", [])
        if not isinstance(roles, list) or not all(isinstance(role, str) for role in roles):
            raise InvalidToken("its roles are no list of texts")
        return Identity(claims["sub"], float(claims["exp"]), frozenset(roles))

    @staticmethod
    def _decode(token: str, key: Any, algorithms: list[str]) -> dict[str, Any]:
        return jwt.decode(token, key, algorithms=algorithms, leeway=LEEWAY_S, options={"require": ["exp", "sub"]})


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
