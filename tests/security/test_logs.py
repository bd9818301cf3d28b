"""Text from clients is escaped in the log, and secrets are removed."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest

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
async def test_no_token_reaches_the_log_at_any_level(level: str, log: Path) -> None:
    args = ["--log-level", level]
    async with serve("tests.apps.handshakes:app", log, args=args, cwd=ROOT) as server:
        async with connect(f"{server.ws}/ws?token=s3cret&a=1") as client:
            await receive(client)
        async with http_client() as http:
            await http.get(f"{server.http}/nowhere?a=1&to%6ben=s3cret")
    assert "s3cret" not in server.log
    if level == "trace":
        assert "'query_string': 'token=…&a=1'" in server.log
        assert "'query_string': 'a=1&to%6ben=…'" in server.log


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
