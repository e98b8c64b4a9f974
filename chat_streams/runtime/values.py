"""Values of settings: checks beyond their types, and one line of text for a wrong one or an unknown variable.

Each text names the variable, its value (never a secret) and what is wanted in its place.
"""

from __future__ import annotations

import difflib
import re
import ssl
import stat
import types
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Final, Literal, Union, get_args, get_origin
from urllib.parse import urlsplit

from pydantic import AfterValidator, SecretStr, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import PydanticCustomError
from pydantic_settings import BaseSettings

from chat_streams.model.addresses import is_host, join_address, split_address
from chat_streams.model.origins import checked_origins

SECRET_BYTES: Final = 64 * 1024
CERTIFICATES_BYTES: Final = 4 * 1024 * 1024
REDIS_PORT: Final = 6379
SHOWN: Final = 100
"""Characters of a wrong value that an error shows."""
UNKNOWN: Final = 20
"""Unknown variables that are named at a start."""
_EMPTY: Final = "empty"
_NO_UTF8: Final = "no_utf8"


def not_empty(value: Any) -> Any:
    """Check, before all else, that a value has more than space: an empty one would mean something else to each type."""
    if isinstance(value, str) and not value.strip():
        raise PydanticCustomError(_EMPTY, "it is empty")
    return value


def decodable(value: Any) -> Any:
    """Check that a text from the environment is UTF-8: Python takes other bytes, and fails where they are used."""
    if isinstance(value, str) and any("\ud800" <= character <= "\udfff" for character in value):
        raise PydanticCustomError(_NO_UTF8, "it is no UTF-8")
    return value


# Checks: each returns the value, perhaps in a simpler form, or raises ValueError with what is wanted.


def server_list(value: str) -> str:
    """Check ``host:port`` of one or more servers, separated by commas."""
    if "@" in value:
        raise ValueError("host:port without a login is wanted: user and password have variables of their own")
    try:
        return ",".join(join_address(*split_address(address.strip())) for address in value.split(","))
    except ValueError as error:
        raise ValueError(f"host:port is wanted, with commas between several: {error}") from None


def redis_nodes(value: str) -> str:
    """Check the URL of a Redis node, and ``host:port`` of further ones."""
    if "@" in value:
        raise ValueError("a URL without a login is wanted: user and password have variables of their own")
    try:
        redis_addresses(value)
    except ValueError:
        raise ValueError(
            "redis://host:port or rediss://host:port is wanted, and ,host:port for each further node"
        ) from None
    return value


def redis_addresses(value: str) -> list[tuple[str, int]]:
    """Return host and port of each node in the URL of Redis; raises ``ValueError``."""
    found = re.fullmatch(r"rediss?://([^,]+)((?:,[^,]+)*)", value)
    if found is None:
        raise ValueError("no URL of Redis")
    first, others = found[1], found[2].split(",")[1:]
    # The first one may leave out the port, as in any URL of Redis.
    has_port = re.search(r":[0-9]+$", first.rpartition("]")[2], re.ASCII)
    return [split_address(address) for address in [first if has_port else f"{first}:{REDIS_PORT}", *others]]


def web_url(value: str, example: str, path: bool) -> str:
    """Check a URL of HTTP without a login; ``path`` is whether it has to have a path, or must have none."""
    try:
        parts = urlsplit(value)
        right = (
            parts.scheme in ("http", "https")
            and parts.username is None
            and is_host(parts.hostname or "")
            and (parts.port is None or parts.port > 0)
            and not parts.fragment
            and not re.search(r"[\s\x00-\x20\x7f]", value)
            and (parts.path not in ("", "/") if path else parts.path in ("", "/") and not parts.query)
        )
    except ValueError:
        right = False
    if not right:
        raise ValueError(f"a whole URL without a login is wanted, like {example}")
    return value


def listening_host(value: str) -> str:
    """Check a name or an address of this machine; an IPv6 address may have brackets."""
    host = value[1:-1] if value.startswith("[") and value.endswith("]") and ":" in value else value
    if not is_host(host):
        raise ValueError("an IP address or a host name without a port is wanted, like 127.0.0.1, 0.0.0.0 or ::1")
    return host


def table_name(value: str) -> str:
    """Check the name of a table of DynamoDB."""
    if not re.fullmatch(r"[A-Za-z0-9_.-]{3,255}", value, re.ASCII):
        raise ValueError("3 to 255 characters of A-Z a-z 0-9 _ . - are wanted")
    return value


def login_name(value: str) -> str:
    """Check the name of a user of an engine."""
    if not value.isprintable():
        raise ValueError("a name without control characters is wanted")
    return value


def audience_list(value: str) -> str:
    """Check names of a service in tokens, separated by commas."""
    names = [name.strip() for name in value.split(",")]
    if not all(name and name.isprintable() for name in names):
        raise ValueError("names are wanted, with commas between, and none of them empty")
    return ",".join(names)


def issuer(value: str) -> str:
    """Check the text of a token's ``iss``."""
    if not value.isprintable():
        raise ValueError("the text of the claim iss is wanted, without control characters")
    return value


def certificates(value: Path) -> Path:
    """Check a file of certificates in PEM."""
    try:
        _content(value, CERTIFICATES_BYTES)
        ssl.create_default_context(cafile=value)
    except ValueError as error:
        raise ValueError(f"a file of certificates in PEM is wanted: {error}") from None
    except ssl.SSLError:
        raise ValueError("a file of certificates in PEM is wanted: it holds none") from None
    return value


def secret_file(value: Path) -> Path:
    """Check a file that holds a secret."""
    read_secret(value)
    return value


def read_secret(file: Path) -> str:
    """Return the text in a file without surrounding space; raises ``ValueError`` with why there is none."""
    try:
        text = _content(file, SECRET_BYTES).decode().strip()
    except UnicodeDecodeError:
        raise ValueError("a file of text in UTF-8 is wanted: it holds other bytes") from None
    except ValueError as error:
        raise ValueError(f"a file that holds the secret is wanted: {error}") from None
    if not text:
        raise ValueError("a file that holds the secret is wanted: it is empty")
    return text


def _content(file: Path, limit: int) -> bytes:
    try:
        # Asked first: to open a pipe would wait for its writer, for ever.
        mode = file.stat().st_mode
        if not stat.S_ISREG(mode):
            raise ValueError("it is a folder" if stat.S_ISDIR(mode) else "it is no regular file")
        with file.open("rb") as opened:
            content = opened.read(limit + 1)
    except OSError as error:
        raise ValueError(f"it cannot be read: {error.strerror}") from None
    if len(content) > limit:
        raise ValueError(f"it has more than {limit:,} bytes")
    return content


Servers = Annotated[str, AfterValidator(server_list)]
RedisNodes = Annotated[str, AfterValidator(redis_nodes)]
Endpoint = Annotated[str, AfterValidator(partial(web_url, example="http://127.0.0.1:8000", path=False))]
Collector = Annotated[str, AfterValidator(partial(web_url, example="http://127.0.0.1:4318/v1/traces", path=True))]
KeySet = Annotated[
    str, AfterValidator(partial(web_url, example="https://login.example/.well-known/jwks.json", path=True))
]
Host = Annotated[str, AfterValidator(listening_host)]
Origins = Annotated[str, AfterValidator(checked_origins)]
TableName = Annotated[str, AfterValidator(table_name)]
AudienceList = Annotated[str, AfterValidator(audience_list)]
Issuer = Annotated[str, AfterValidator(issuer)]
LoginName = Annotated[str, AfterValidator(login_name)]
Certificates = Annotated[Path, AfterValidator(certificates)]
SecretFile = Annotated[Path, AfterValidator(secret_file)]


# Texts


def variable(model: type[BaseSettings], field: str) -> str:
    """Return the environment variable of a field."""
    return f"{model.model_config['env_prefix']}{field.upper()}"


def unwrap(field: FieldInfo) -> tuple[Any, list[Any]]:
    """Return the type of a field without ``None``, and all that annotations say about it."""
    kind, metadata = field.annotation, list(field.metadata)
    while True:
        origin, arguments = get_origin(kind), get_args(kind)
        if origin in (Union, types.UnionType):
            (kind,) = (argument for argument in arguments if argument is not types.NoneType)
        elif origin is Annotated:
            kind = arguments[0]
            for extra in arguments[1:]:
                metadata += extra.metadata if isinstance(extra, FieldInfo) else [extra]
        else:
            return kind, metadata


def wanted(field: FieldInfo) -> str:
    """Return what a field takes, in words."""
    kind, metadata = unwrap(field)
    if kind is bool:
        return "true or false"
    if kind in (int, float):
        number = "a whole number" if kind is int else "a number"
        words = (("ge", "from"), ("gt", "above"), ("le", "to"))
        limits = [f"{word} {getattr(each, name):,}" for name, word in words for each in metadata if hasattr(each, name)]
        return " ".join([number, *limits])
    if get_origin(kind) is Literal:
        *most, last = map(str, get_args(kind))
        return f"{', '.join(most)} or {last}" if most else last
    return "text"


def is_secret(field: FieldInfo) -> bool:
    """Return whether the value of a field must never be shown."""
    return unwrap(field)[0] is SecretStr


def shown(value: object) -> str:
    """Return a value as an error shows it: escaped, of limited length, without a URL's login and query."""
    text = str(value)
    text = re.sub(r"^.*@", "…@", re.sub(r"\?.*", "?…", text, flags=re.DOTALL), flags=re.DOTALL)
    return repr(text if len(text) <= SHOWN else f"{text[:SHOWN]}…")


def explain(model: type[BaseSettings], error: ValidationError) -> str:
    """Return one line that names each wrong variable, its value, and what is wanted."""
    texts = []
    for each in error.errors():
        cause = each.get("ctx", {}).get("error")
        # An error about several settings has no location; its text names them.
        if not each["loc"]:
            texts.append(str(cause or each["msg"]))
            continue
        name = str(each["loc"][0])
        field, what = model.model_fields[name], variable(model, name)
        if each["type"] == _EMPTY or each["input"] == "":
            default = "" if field.default is None else f" ({field.default})"
            texts.append(f"{what} is empty: {wanted(field)} is wanted; unset it for the default{default}")
        elif each["type"] == _NO_UTF8:
            texts.append(f"{what} is no text in UTF-8, which is wanted")
        else:
            value = "wrong" if is_secret(field) else shown(each["input"])
            texts.append(f"{what} is {value}: {cause or f'{wanted(field)} is wanted'}")
    return "; ".join(texts)


def unknown(names: Iterable[str], known: Iterable[str], prefix: str, others: Sequence[str] = ()) -> list[str]:
    """Return a line for each variable that begins with ``prefix`` and is not ``known``, with the nearest known name.

    Those that begin with one of ``others`` belong to another program.
    """
    known = set(known)
    lines = []
    for name in sorted({name for name in names if name.startswith(prefix)} - known):
        if name.startswith(tuple(others)):
            continue
        nearest = difflib.get_close_matches(name, known, n=1)
        hint = f"is {nearest[0]} meant?" if nearest else "docs/settings.md has all"
        lines.append(f"{name[:SHOWN]} is no setting, and is ignored: {hint}")
    return lines[:UNKNOWN]
