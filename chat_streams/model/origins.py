"""Origins of web pages, compared as RFC 6454 does: scheme, host and port, where a default port may be left out."""

from __future__ import annotations

import re
from collections.abc import Iterable
from ipaddress import IPv6Address
from typing import Final, NamedTuple, Self

ANY: Final = "*"
DEFAULT_PORTS: Final = {"http": 80, "https": 443}
WANTED: Final = "https://chat.example, https://chat.example:8443, capacitor://localhost, null, or * for any"
_PARTS: Final = re.compile(r"([a-z][a-z0-9+.-]*)://(\[[0-9a-f:.]+\]|[^\s\[\]:/?#@,*\\]*)(?::([0-9]{1,5}))?")
_HOST: Final = re.compile(r"[a-z0-9._-]+")


class Origin(NamedTuple):
    """The origin of a page; ``port`` is ``None`` where the scheme has no default port and none is given."""

    scheme: str
    host: str
    port: int | None

    @classmethod
    def parse(cls, text: str) -> Self:
        """Return the origin that a text stands for; raises ``ValueError`` where it is none."""
        if text == "null":
            return cls("", text, None)
        match = _PARTS.fullmatch(text.lower())
        if match is None:
            raise ValueError(f"{text[:60]!r} is no origin")
        scheme, host, port = match[1], match[2], int(match[3]) if match[3] else DEFAULT_PORTS.get(match[1])
        try:
            if host.startswith("["):
                host = f"[{IPv6Address(host[1:-1])}]"
            elif scheme in DEFAULT_PORTS:
                # Browsers send names in ASCII, people write them as they are.
                host = host.encode("idna").decode("ascii").lower()
        except ValueError as error:
            raise ValueError(f"{text[:60]!r} is no origin: {error}") from error
        # The pages of an app may have a scheme of their own, and no host.
        if (scheme in DEFAULT_PORTS and not (host.startswith("[") or _HOST.fullmatch(host))) or (port or 0) > 65_535:
            raise ValueError(f"{text[:60]!r} is no origin")
        return cls(scheme, host, port)

    def is_of(self, host: str) -> bool:
        """Return whether a page of this origin came from the server that a request names as its ``Host``.

        Its scheme is not compared: the server does not know it where a proxy ends TLS.
        """
        try:
            return self.scheme in DEFAULT_PORTS and self.parse(f"{self.scheme}://{host}") == self
        except ValueError:
            return False


class AllowedOrigins:
    """The origins whose pages may connect: a set of them, or any."""

    def __init__(self, allowed: Iterable[Origin], any_: bool = False) -> None:
        self._allowed = frozenset(allowed)
        self._any = any_

    @classmethod
    def parse(cls, text: str) -> Self:
        """Return the origins of a list with commas between; raises ``ValueError`` that names the wrong entry."""
        entries = [entry.strip() for entry in text.split(",")]
        try:
            return cls([Origin.parse(entry) for entry in entries if entry != ANY], ANY in entries)
        except ValueError as error:
            raise ValueError(f"{error}: {WANTED} is wanted, with commas between") from error

    def allows(self, origin: str | None, host: str) -> bool:
        """Return whether a request with these headers may be served; one without an origin comes from no page."""
        if origin is None or self._any:
            return True
        try:
            found = Origin.parse(origin)
        except ValueError:
            return False
        return found in self._allowed or found.is_of(host)


def checked_origins(text: str) -> str:
    """Return the text if it is a list of origins; raises ``ValueError`` that names the wrong entry."""
    AllowedOrigins.parse(text)
    return text
