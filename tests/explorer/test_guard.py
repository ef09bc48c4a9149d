"""Who may ask: the explorer's own page, at its own address, with its token; every other way in is refused."""

import asyncio
from typing import Any

import httpx
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route

from causal_tracing.errors import InvalidOption
from causal_tracing.explorer.guard import MOST_BYTES, Guard, hosts_of
from causal_tracing.explorer.serve import LOCAL, Address

PORT, TOKEN = 8765, "s3cret"
HERE = f"127.0.0.1:{PORT}"
GOOD = {"host": HERE, "authorization": f"Bearer {TOKEN}"}
JSON = {"content-type": "application/json"}


async def echo(request: Request) -> PlainTextResponse:
    return PlainTextResponse(str(len(await request.body())))


def guarded() -> Guard:
    routes = [Route("/", echo), Route("/api/thing", echo, methods=["GET", "POST", "DELETE"])]
    return Guard(Starlette(routes=routes), hosts=hosts_of(LOCAL, PORT), token=TOKEN)


def answer(method: str, path: str, headers: Any, body: bytes | None = None) -> httpx.Response:
    async def asked() -> httpx.Response:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(guarded()), base_url=f"http://{HERE}") as client:
            return await client.request(method, path, headers=headers, content=body)

    return asyncio.run(asked())


def but(**changed: Any) -> list[tuple[str, str]]:
    """Good headers with some changed; a list gives one several times, None leaves it out."""
    found = GOOD | {name.replace("_", "-"): value for name, value in changed.items()}
    return [(n, each) for n, v in found.items() if v is not None for each in (v if isinstance(v, list) else [v])]


CASES: list[tuple[str, list[tuple[str, str]], int]] = [
    ("by address", but(), 200),
    ("by name", but(host=f"localhost:{PORT}"), 200),
    ("by name in capitals", but(host=f"LocalHost:{PORT}"), 200),
    ("by the other address", but(host=f"[::1]:{PORT}"), 200),
    ("from its own page", but(sec_fetch_site="same-origin", origin=f"http://{HERE}"), 200),
    ("typed by the user", but(sec_fetch_site="none"), 200),
    ("rebound name", but(host=f"evil.example:{PORT}"), 400),
    ("another port", but(host="127.0.0.1:80"), 400),
    ("no port", but(host="127.0.0.1"), 400),
    ("name with ours in front", but(host=f"127.0.0.1.evil.example:{PORT}"), 400),
    ("host twice", but(host=[HERE, HERE]), 400),
    ("two hosts", but(host=[HERE, "evil.example"]), 400),
    ("cross site", but(sec_fetch_site="cross-site"), 403),
    ("same site, another port", but(sec_fetch_site="same-site"), 403),
    ("site twice", but(sec_fetch_site=["same-origin", "cross-site"]), 403),
    ("another origin", but(origin="http://evil.example"), 403),
    ("another port's origin", but(origin="http://127.0.0.1:80"), 403),
    ("null origin", but(origin="null"), 403),
    ("origin twice", but(origin=[f"http://{HERE}", "http://evil.example"]), 403),
    ("the other name's origin", but(origin=f"http://localhost:{PORT}"), 403),
    ("no token", but(authorization=None), 401),
    ("another token", but(authorization="Bearer wrong"), 401),
    ("a longer token", but(authorization=f"Bearer {TOKEN}x"), 401),
    ("token without its scheme", but(authorization=TOKEN), 401),
    ("token twice", but(authorization=[f"Bearer {TOKEN}", f"Bearer {TOKEN}"]), 401),
    ("token in a cookie", but(authorization=None, cookie=f"token={TOKEN}"), 401),
]


@pytest.mark.parametrize(("headers", "status"), [case[1:] for case in CASES], ids=[case[0] for case in CASES])
def test_who_may_ask(headers: list[tuple[str, str]], status: int):
    assert answer("GET", "/api/thing", headers).status_code == status


def test_a_token_in_the_query_is_none():
    assert answer("GET", f"/api/thing?token={TOKEN}", but(authorization=None)).status_code == 401


def test_the_page_itself_needs_no_token_but_its_own_address():
    assert answer("GET", "/", {"host": HERE}).status_code == 200
    assert answer("GET", "/", {"host": "evil.example"}).status_code == 400


@pytest.mark.parametrize("kind", [None, "text/plain", "application/x-www-form-urlencoded", "multipart/form-data"])
def test_a_form_cannot_post(kind: str | None):
    assert answer("POST", "/api/thing", but(content_type=kind), b"{}").status_code == 415
    assert answer("POST", "/api/thing", but(**{"content-type": "application/json; charset=utf-8"}), b"{}").text == "2"


def test_bodies_are_small_whatever_they_say():
    large = b" " * (MOST_BYTES + 1)
    assert answer("POST", "/api/thing", but(**JSON), large[1:]).status_code == 200
    assert answer("POST", "/api/thing", but(**JSON), large).status_code == 413
    assert answer("POST", "/api/thing", but(content_length="-1", **JSON), b"{}").status_code == 413

    async def pieces() -> int:
        async def body() -> Any:
            for _ in range(3):
                yield large[: MOST_BYTES // 2]

        async with httpx.AsyncClient(transport=httpx.ASGITransport(guarded()), base_url=f"http://{HERE}") as client:
            content: Any = body()
            return (await client.post("/api/thing", headers=but(**JSON), content=content)).status_code

    assert asyncio.run(pieces()) == 413


def test_every_answer_is_sealed():
    for found in (answer("GET", "/", {"host": HERE}), answer("GET", "/api/thing", but(host="evil.example"))):
        policy = found.headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
        assert "require-trusted-types-for 'script'" in policy
        assert found.headers["x-content-type-options"] == "nosniff"
        assert found.headers["referrer-policy"] == "no-referrer"
        assert found.headers["cross-origin-resource-policy"] == "same-origin"
        assert found.headers["cache-control"] == "no-store"
        assert "access-control-allow-origin" not in found.headers
        assert "set-cookie" not in found.headers


def test_a_websocket_is_closed():
    sent: list[Any] = []

    async def asked() -> None:
        async def send(message: Any) -> None:
            sent.append(message)

        async def receive() -> Any:
            return {"type": "websocket.connect"}

        await guarded()({"type": "websocket", "path": "/api/thing", "headers": []}, receive, send)

    asyncio.run(asked())
    assert [each["type"] for each in sent] == ["websocket.close"]


def test_other_machines_need_two_words():
    with pytest.raises(InvalidOption, match="--allow-host"):
        Address(host="0.0.0.0")
    assert "box.example" in Address(host="0.0.0.0", allowed=["box.example"]).names
