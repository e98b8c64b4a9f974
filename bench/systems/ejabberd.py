"""ejabberd: XMPP over plain TCP, stream management (XEP-0198) in both directions, offline messages in Mnesia."""

from __future__ import annotations

import asyncio
import base64
import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

import aiohttp

from bench.links import MARK, Link, LinkError, in_turn
from bench.systems import NotInstalled, System, output
from bench.systems.ports import free_port

DOMAIN = "localhost"
PASSWORD = "bench"  # noqa: S105 - of accounts that live for one run on the loopback interface
ASK_EVERY = 50
ASK = b"<r xmlns='urn:xmpp:sm:3'/>"
OPEN = (
    f"<stream:stream to='{DOMAIN}' version='1.0' xmlns='jabber:client' xmlns:stream='http://etherx.jabber.org/streams'>"
).encode()
_handled = re.compile(rb"<a [^>]*?h=['\"](\d+)['\"]")

CONFIGURATION = """\
hosts: [{domain}]
loglevel: error
auth_method: internal
auth_password_format: plain
disable_sasl_mechanisms: [digest-md5, X-OAUTH2]
listen:
  - port: {port}
    ip: 127.0.0.1
    module: ejabberd_c2s
    max_stanza_size: 262144
    backlog: 4096
  - port: {web}
    ip: 127.0.0.1
    module: ejabberd_http
    request_handlers: {{/api: mod_http_api}}
api_permissions:
  bench: {{from: [mod_http_api], who: {{ip: 127.0.0.1/8}}, what: ["*"]}}
shaper_rules:
  max_user_sessions: 10
  offline_messages: {{infinity: all}}
modules:
  mod_admin_extra: {{}}
  mod_http_api: {{}}
  mod_offline: {{access_max_user_messages: offline_messages}}
  mod_ping: {{}}
  mod_stream_mgmt: {{resend_on_timeout: if_offline, max_ack_queue: infinity}}
"""


def message(to: str, number: int, content: bytes, *, ask: bool) -> bytes:
    """Return a chat message, with or without the request for an acknowledgement behind it."""
    return b"<message to='%b@%b' type='chat' id='m%d'><body>%b</body></message>%b" % (
        to.encode(),
        DOMAIN.encode(),
        number,
        content,
        ASK if ask else b"",
    )


class XmppLink(Link):
    """A stream with its resource bound and stream management enabled."""

    def __init__(self) -> None:
        super().__init__()
        self.handled = 0
        self._base: int | None = None
        self._stanzas = 0
        self.pongs = 0
        self._tail = b""

    def frame(self, to: str, number: int, content: bytes) -> bytes:
        """Return a message that asks for its acknowledgement."""
        return message(to, number, content, ask=True)

    def frames(self, messages: Sequence[tuple[str, int, bytes]], array: int = 1) -> list[bytes]:
        """Return messages, of which each 50th and the last ask for an acknowledgement."""
        last = len(messages) - 1
        return [
            message(*found, ask=index % ASK_EVERY == ASK_EVERY - 1 or index == last)
            for index, found in enumerate(messages)
        ]

    def start(self, stanzas: int) -> None:
        """Set the number of stanzas sent since stream management was enabled that are no messages."""
        self._base = stanzas

    def feed(self, data: bytes) -> None:
        """Count messages by their mark, take the newest acknowledgement, and answer requests for one."""
        new = data.count(MARK)
        self.received += new
        # Element names may be cut anywhere: the last bytes, too few for a whole element, are read again with the next
        # piece.
        whole = self._tail + data
        self._tail = whole[-64:]
        fresh = whole[max(0, len(whole) - len(data) - 64) :]
        if (found := _handled.findall(fresh)) and self._base is not None:
            self.confirmed = max(self.confirmed, int(found[-1]) - self._base)
        if b"<r " in data or b"<r/" in data:
            self.transport.write(b"<a xmlns='urn:xmpp:sm:3' h='%d'/>" % self.received)
        if b"</stream:stream>" in data or b"type='error'" in data:
            raise LinkError(data[-400:].decode(errors="replace"))
        self.pongs += data.count(b"id='bench-ping'")


class Ejabberd(System):
    """The server of the Debian package, without its system user and folders."""

    name: ClassVar[str] = "ejabberd"
    title: ClassVar[str] = "ejabberd"
    most: ClassVar[int] = 5_000
    warm: ClassVar[int] = 1_000
    promise: ClassVar[str] = (
        "Acknowledgement of XEP-0198: the server has taken the stanza in. For an offline user it goes to Mnesia "
        "(`mod_offline`, the default), whose log is written behind it; no fsync per message."
    )

    @classmethod
    def version(cls) -> str:
        """Return the version of the package."""
        if shutil.which("ejabberdctl", path="/usr/sbin:/usr/bin") is None or shutil.which("erl") is None:
            raise NotInstalled("ejabberd is not installed: make bench-peers (sudo apt install ejabberd)")
        return output(["dpkg-query", "-W", "-f", "${Version}", "ejabberd"]).strip() or "unknown"

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self._known: set[str] = set()

    async def start(self) -> None:
        """Start the node without distribution: no epmd, no ports but the two of the configuration."""
        self.port, self.web = free_port(), free_port()
        self.folder.mkdir(parents=True, exist_ok=True)
        configuration = self.folder / "ejabberd.yml"
        configuration.write_text(CONFIGURATION.format(domain=DOMAIN, port=self.port, web=self.web))
        inetrc = self.folder / "inetrc"
        inetrc.write_text('{lookup,["file","native"]}.\n{host,{127,0,0,1},["localhost"]}.\n')
        environment = {
            "EJABBERD_CONFIG_PATH": str(configuration),
            "EJABBERD_LOG_PATH": str(self.folder / "ejabberd-log" / "ejabberd.log"),
            "ERL_LIBS": _libraries(),
            "ERL_INETRC": str(inetrc),
            "ERL_CRASH_DUMP_BYTES": "0",
            "ERL_MAX_PORTS": "32000",
            "HOME": str(self.folder),
        }
        options = ["+K", "true", "+P", "250000", "-noinput", "-mnesia", "dir", f'"{self.folder}/mnesia"']
        self.spawn("ejabberd", ["erl", *options, "-s", "ejabberd"], environment)
        await self.listening(self.port)
        await self.listening(self.web)

    async def prepare(self, users: Sequence[str]) -> None:
        """Register the accounts: a message to an unknown user is an error."""
        url = f"http://127.0.0.1:{self.web}/api/register"
        async with aiohttp.ClientSession() as session:

            async def register(user: str) -> None:
                account = {"user": user, "host": DOMAIN, "password": PASSWORD}
                async with session.post(url, json=account) as answer:
                    if answer.status not in (200, 409):
                        raise LinkError(f"registering {user}: {answer.status} {(await answer.text())[:200]}")

            await in_turn([lambda user=user: register(user) for user in users], 8)  # type: ignore[misc]
        self._known |= set(users)

    async def connect(self, user: str, *, receive: bool) -> XmppLink:
        """Log in, bind, enable stream management; presence brings the offline messages."""
        if user not in self._known:
            await self.prepare([user])
        link = XmppLink()
        await link.dial(self.port)
        link.write(OPEN)
        await link.expect(rb"</stream:features>")
        secret = base64.b64encode(f"\0{user}\0{PASSWORD}".encode())
        link.write(b"<auth xmlns='urn:ietf:params:xml:ns:xmpp-sasl' mechanism='PLAIN'>%b</auth>" % secret)
        await link.expect(rb"<success[^>]*>")
        link.write(OPEN)
        await link.expect(rb"</stream:features>")
        bind = "<bind xmlns='urn:ietf:params:xml:ns:xmpp-bind'><resource>bench</resource></bind>"
        link.write(f"<iq type='set' id='b'>{bind}</iq>".encode())
        await link.expect(rb"</iq>")
        link.write(b"<enable xmlns='urn:xmpp:sm:3'/>")
        await link.expect(rb"<enabled[^>]*>")
        if receive:
            link.write(b"<presence/>")
        link.start(1 if receive else 0)
        link.ready()
        return link

    async def emptied(self, links: dict[str, Link]) -> None:
        """Acknowledge all, and wait for the answer to a ping sent after that."""
        for link in links.values():
            assert isinstance(link, XmppLink)
            before = link.pongs
            ping = f"<iq type='get' id='bench-ping' to='{DOMAIN}'><ping xmlns='urn:xmpp:ping'/></iq>"
            link.write(b"<a xmlns='urn:xmpp:sm:3' h='%d'/>%b" % (link.received, ping.encode()))
            while link.pongs == before:
                if link.failure is not None:
                    raise link.failure
                await asyncio.sleep(0.001)


def _libraries() -> str:
    found = sorted(Path("/usr/lib").glob("*/ejabberd-*"))
    return str(found[0].parent) if found else "/usr/lib"
