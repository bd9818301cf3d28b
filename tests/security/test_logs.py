"""Text from clients is escaped in the log, and secrets are removed."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
from websockets.frames import Frame, Opcode

from hubbub.security.logs import LOGGERS, LONGEST, is_reported, protect_logs
from tests.clients import connect, exchange, http_client, receive
from tests.uvicorn_process import ROOT, serve


class Lines(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


def logged(*args: Any, level: int = logging.WARNING) -> list[str]:
    """Log a record with these arguments; returns the lines that it becomes."""
    protect_logs()
    logger, handler = logging.getLogger("uvicorn.access"), Lines()
    logger.addHandler(handler)
    try:
        logger.log(level, " ".join(["%s"] * len(args)), *args)
    finally:
        logger.removeHandler(handler)
    return handler.lines


@pytest.mark.parametrize(
    ("url", "line"),
    [
        ("/ws?token=s3cret", "/ws?token=…"),
        ("/ws?a=1&token=s3cret&b=2", "/ws?a=1&token=…&b=2"),
        ("/ws?cf_connect=%7B%22token%22%3A1%7D", "/ws?cf_connect=…"),
        ("/ws?to%6ben=s3cret", "/ws?to%6ben=…"),
        ("/ws?token=s3;cret#s3cret", "/ws?token=…"),
        ("/ws?token=a&token=b", "/ws?token=…&token=…"),
        ("/ws?token=", "/ws?token=…"),
        ("/ws?mytoken=1&tokens=2&Token=3", "/ws?mytoken=1&tokens=2&Token=3"),
        ("/token=1", "/token=1"),
    ],
)
def test_the_value_of_a_token_is_not_logged(url: str, line: str) -> None:
    assert logged("127.0.0.1:1", url, 200) == [f"127.0.0.1:1 {line} 200"]


@pytest.mark.parametrize(
    ("name", "value", "line"),
    [
        ("Authorization", "Bearer s3cret", "Authorization …"),
        ("cookie", "session=s3cret", "cookie …"),
        ("Set-Cookie", "session=s3cret", "Set-Cookie …"),
        ("proxy-authorization", "Basic s3cret", "proxy-authorization …"),
        (
            "sec-websocket-protocol",
            "hubbub, hubbub.token.s3cret, x",
            "sec-websocket-protocol hubbub, hubbub.token.…, x",
        ),
        ("User-Agent", "curl", "User-Agent curl"),
    ],
)
def test_the_values_of_secret_headers_are_not_logged(name: str, value: str, line: str) -> None:
    # As the library of uvicorn's own WebSocket protocol logs them at the level "debug".
    assert logged(name, value) == [line]


def test_an_asgi_scope_is_logged_without_secrets() -> None:
    scope = {
        "type": "websocket",
        "path": "/ws",
        "query_string": b"a=1&token=s3cret",
        "headers": [
            (b"host", b"localhost"),
            (b"authorization", b"Bearer s3cret"),
            (b"cookie", b"session=s3cret"),
            (b"sec-websocket-protocol", b"hubbub, hubbub.token.s3cret"),
            [b"no", b"pair", b"at all"],
        ],
        "subprotocols": ["hubbub", "hubbub.token.s3cret"],
    }
    before = repr(scope)
    (line,) = logged("1.2.3.4:5", 1, scope)
    assert "s3cret" not in line
    for part in ("'query_string': 'a=1&token=…'", "('host', 'localhost')", "['hubbub', 'hubbub.token.…']"):
        assert part in line
    assert repr(scope) == before
    # As uvicorn logs it.
    assert "'headers': '<...>'" in logged("1.2.3.4:5", 1, {**scope, "headers": "<...>"})[0]


def test_a_message_with_a_token_is_not_logged() -> None:
    refresh = Frame(Opcode.TEXT, b'{"type": "refresh", "token": "s3cret"}')
    assert logged(refresh) == ["TEXT [38 bytes with a token]"]
    assert logged(Frame(Opcode.TEXT, b"hello")) == ["TEXT 'hello' [5 bytes]"]


def test_control_characters_are_escaped() -> None:
    assert logged("a\x1b[2J\x85\u2028b", "ü") == ["a\\x1b[2J\\x85\\u2028b ü"]


def test_long_values_are_cut() -> None:
    (line,) = logged("x" * 10_000)
    assert line == f"{'x' * LONGEST}… (10000 characters)"


def test_information_about_a_refused_client_is_dropped() -> None:
    token = is_reported.set(True)
    try:
        assert logged("a", level=logging.INFO) == []
        assert logged("a", level=logging.ERROR) == ["a"]
    finally:
        is_reported.reset(token)


def test_the_filter_is_there_once() -> None:
    protect_logs()
    before = {name: list(logging.getLogger(name).filters) for name in LOGGERS}
    protect_logs()
    assert before == {name: list(logging.getLogger(name).filters) for name in LOGGERS}


@pytest.mark.parametrize("level", ["debug", "trace"])
@pytest.mark.parametrize("name", ["hubbub run", "uvicorn queued"])
async def test_no_token_reaches_the_log_at_any_level(name: str, level: str, log: Path) -> None:
    args = ["--log-level", level]
    secrets = {"Authorization": "Bearer s3cret", "Cookie": "session=s3cret"}
    subprotocols: Any = ["hubbub", "hubbub.token.s3cret"]
    async with serve("tests.apps.handshakes:app", log, command=name, args=args, cwd=ROOT) as server:
        async with connect(
            f"{server.ws}/ws?token=s3cret&a=1", additional_headers=secrets, subprotocols=subprotocols
        ) as client:
            await receive(client)
            await client.send('{"type": "refresh", "token": "s3cret"}')
            await receive(client)
        async with http_client() as http:
            await http.get(f"{server.http}/nowhere?a=1&to%6ben=s3cret", headers=secrets)
            # As an EventSource, and as fetch().
            await http.get(f"{server.http}/channels/a?token=s3cret", headers={"Accept": "text/event-stream"})
            await http.post(f"{server.http}/channels/a?token=s3cret", json={})
    assert "s3cret" not in server.log
    assert '"POST /channels/a?token=… HTTP/1.1" 404' in server.log
    if level == "trace":
        assert "'query_string': 'token=…&a=1'" in server.log
        assert "'query_string': 'a=1&to%6ben=…'" in server.log
        assert "'subprotocols': ['hubbub', 'hubbub.token.…']" in server.log
    if name == "uvicorn queued":
        assert "< authorization: …" in server.log
        assert "TEXT [38 bytes with a token]" in server.log


@pytest.mark.parametrize("name", ["hubbub run", "uvicorn --ws", "uvicorn"])
async def test_neither_tokens_nor_control_characters_reach_the_log_of_a_server(name: str, log: Path) -> None:
    async with serve("tests.apps.handshakes:app", log, command=name, cwd=ROOT) as server:
        forwarded = {"X-Forwarded-For": "1.2.3.4\x9b31m", "User-Agent": "\x9b"}
        async with connect(f"{server.ws}/ws?a=1&token=s3cret", additional_headers=forwarded) as client:
            await receive(client)
        async with http_client() as http:
            await http.get(f"{server.http}/?cf_connect=s3cret")
        # As bytes: httpx2 refuses such a header.
        await exchange(
            server.port,
            b"GET /nowhere?token=s3cret HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
            b"X-Forwarded-For: 1.2.3.4\x9b31m\r\n\r\n",
        )
    assert "/ws?a=1&token=…" in server.log
    assert "/?cf_connect=…" in server.log
    assert "/nowhere?token=…" in server.log
    assert "s3cret" not in server.log
    assert server.log.count("1.2.3.4\\x9b31m") == 2
    assert "\x9b" not in server.log
