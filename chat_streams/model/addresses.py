"""Network addresses as text: ``host:port``, with brackets around an IPv6 address, as in URLs (RFC 3986, 3.2.2)."""

from __future__ import annotations

import ipaddress
import re
from typing import Final

_NAME: Final = re.compile(r"(?=.{1,253}\.?$)(?!-)[\w-]{1,63}(\.(?!-)[\w-]{1,63})*\.?")
_PORT: Final = re.compile(r"[0-9]{1,5}", re.ASCII)
HIGHEST_PORT: Final = 65_535


def is_host(text: str) -> bool:
    """Return whether the text is a host name, an IPv4 address, or an IPv6 address without brackets."""
    return _NAME.fullmatch(text) is not None or _is_ipv6(text)


def split_address(text: str) -> tuple[str, int]:
    """Return host and port of ``host:port``, without the brackets of an IPv6 address; raises ``ValueError``."""
    host, colon, port = text.rpartition(":")
    if host[:1] == "[" and host[-1:] == "]":
        host = host[1:-1]
        right = _is_ipv6(host)
    else:
        right = _NAME.fullmatch(host) is not None
    if not colon or not right or not _PORT.fullmatch(port) or not 1 <= int(port) <= HIGHEST_PORT:
        raise ValueError(f"{text[:100]!r} is no host:port, nor [IPv6 address]:port")
    return host, int(port)


def join_address(host: str, port: int) -> str:
    """Return ``host:port``, or ``[host]:port`` for an IPv6 address."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def is_loopback(host: str) -> bool:
    """Return whether a host, without brackets, is this machine by its loopback interface."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _is_ipv6(text: str) -> bool:
    try:
        ipaddress.IPv6Address(text)
    except ValueError:
        return False
    return True
