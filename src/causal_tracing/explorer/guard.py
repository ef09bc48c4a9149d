"""Who may talk to the explorer: its own page, by its own address, with its own token.

The threat is any web page that the user has open. In the order in which a request is looked at:

1. `Host` is there once, and is an address that the server was started for, port included (else 400).
2. Of `/api`: no other site asks (`Sec-Fetch-Site`, `Origin`: 403), the token is in the Authorization header and nowhere
   else (401: a cookie would be shared by all ports of this machine, a query is kept in logs), a body is JSON, which no
   form can send (415), and small (413).
3. Every answer carries a content policy without inline code, and none is handed to another origin.

Pure ASGI: what is put before HTTP alone would let websockets through.
"""

import hmac
import json
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

MOST_BYTES = 64 * 1024  # of a request's body
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
    "trusted-types 'none'; require-trusted-types-for 'script'"
)
HEADERS = {
    "content-security-policy": POLICY,
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "cache-control": "no-store",
}
PERMITTED_SITES = ("same-origin", "none")


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    """Why a request is not answered, and what to do."""

    status: int
    message: str


def hosts_of(names: Collection[str], port: int) -> frozenset[str]:
    """The `Host` headers that name this server. Addresses with colons stand in brackets."""
    return frozenset(f"[{name}]:{port}" if ":" in name else f"{name}:{port}".lower() for name in names)


class Guard:
    """Passes on what the explorer's own page asks, and refuses everything else."""

    def __init__(self, app: ASGIApp, *, hosts: Collection[str], token: str) -> None:
        self.app = app
        self.hosts = frozenset(hosts)
        self.token = token

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Lets a request through, or answers it."""
        if scope["type"] != "http":
            # Refused whatever it says: no part of the page opens one.
            if scope["type"] == "websocket":
                await send({"type": "websocket.close", "code": 1008})
            return
        sealed = _sealed(send)
        refusal = self.refusal(scope)
        if refusal is not None:
            await _refuse(refusal, sealed)
            return
        body = await _body(receive)
        if body is None:
            await _refuse(_too_large(), sealed)
            return
        await self.app(scope, _again(body, receive), sealed)

    def refusal(self, scope: Scope) -> Refusal | None:
        """Why this request is refused; None where it is let through."""
        host = _all(scope, b"host")
        # A page elsewhere can have its own name resolve to this machine; its requests then carry that name as their
        # host.
        if len(host) != 1 or host[0].lower() not in self.hosts:
            return Refusal(
                status=400,
                message="This address is not the explorer's. Open the address that it printed, or start it with "
                "--allow-host NAME.",
            )
        # The page and its scripts hold nothing that is not public: they are needed to read the token from the address.
        if not scope["path"].startswith("/api"):
            return None
        return self._foreign(scope, host[0].lower()) or self._without_token(scope) or _unreadable(scope)

    def _foreign(self, scope: Scope, host: str) -> Refusal | None:
        site, origin = _all(scope, b"sec-fetch-site"), _all(scope, b"origin")
        ours = (f"http://{host}", f"https://{host}")  # https where a proxy of the user's own stands before it
        if any(each not in PERMITTED_SITES for each in site) or len(site) > 1:
            return Refusal(status=403, message="Another site asks. The explorer answers its own page alone.")
        if len(origin) > 1 or any(each.lower() not in ours for each in origin):
            return Refusal(status=403, message="Another origin asks. The explorer answers its own page alone.")
        return None

    def _without_token(self, scope: Scope) -> Refusal | None:
        given = _all(scope, b"authorization")
        expected = f"Bearer {self.token}"
        # In the same time whatever is wrong with it: else it could be guessed letter by letter.
        if len(given) == 1 and hmac.compare_digest(given[0].encode(), expected.encode()):
            return None
        return Refusal(
            status=401,
            message="The token is missing or is another one's. Open the whole address that the explorer printed, with "
            "what stands behind #.",
        )


def _unreadable(scope: Scope) -> Refusal | None:
    if scope["method"] not in ("POST", "PUT", "PATCH"):
        return None
    kinds = _all(scope, b"content-type")
    if len(kinds) != 1 or kinds[0].partition(";")[0].strip().lower() != "application/json":
        return Refusal(status=415, message="Send JSON: Content-Type: application/json.")
    lengths = _all(scope, b"content-length")
    if any(not length.isdigit() or int(length) > MOST_BYTES for length in lengths):
        return _too_large()
    return None


def _too_large() -> Refusal:
    return Refusal(status=413, message=f"The request is larger than {MOST_BYTES // 1024} kB. Send shorter prompts.")


async def _body(receive: Receive) -> bytes | None:
    """The whole body, for it is small; None where it is not. A length need not be said, nor be true."""
    taken, more = b"", True
    while more:
        message = await receive()
        taken += message.get("body", b"")
        if len(taken) > MOST_BYTES:
            return None
        more = message.get("more_body", False)
    return taken


def _again(body: bytes, receive: Receive) -> Receive:
    """What was taken, handed on; then what comes behind it."""
    given = False

    async def received() -> Message:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return received


def _sealed(send: Send) -> Send:
    """Answers with the headers that keep the page to itself."""

    async def sent(message: Message) -> None:
        if message["type"] == "http.response.start":
            kept = [(name, value) for name, value in message.get("headers", ()) if name.decode() not in HEADERS]
            ours = [(name.encode(), value.encode()) for name, value in HEADERS.items()]
            message = {**message, "headers": [*kept, *ours]}
        await send(message)

    return sent


async def _refuse(refusal: Refusal, send: Send) -> None:
    body = json.dumps({"type": "Refused", "message": refusal.message}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": refusal.status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def _all(scope: Scope, name: bytes) -> list[str]:
    """Every value of a header."""
    found: Any = scope["headers"]
    return [value.decode("latin-1") for each, value in found if each.lower() == name]
