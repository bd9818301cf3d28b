"""``hubbub publish``."""

from __future__ import annotations

import asyncio
from pathlib import Path
from secrets import token_hex

import pytest

from hubbub.core.publication import Publication
from hubbub.engines import engine_for
from hubbub.testing.engine_contract import Collector
from tests.commands import hubbub
from tests.uvicorn_process import free_port


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path / 'hub.db'}"


def stored(url: str, channel: str, namespace: str = "hubbub") -> list[Publication]:
    async def read() -> list[Publication]:
        engine = engine_for(url, namespace)
        await engine.start(Collector())
        try:
            return list((await engine.history(channel)).publications)
        finally:
            await engine.stop()

    return asyncio.run(read())


@pytest.mark.parametrize("engine", ["sqlite", "redis", "postgres"])
def test_a_message_is_published_at_the_position_that_is_printed(
    engine: str, url: str, request: pytest.FixtureRequest
) -> None:
    if engine != "sqlite":
        url = request.getfixturevalue(f"{engine}_url")
    namespace = f"test-{token_hex(4)}"
    words = ("publish", url, "chat", "hello, wörld", "--history-size", "5", "--namespace", namespace)
    done = hubbub(*words)
    (publication,) = stored(url, "chat", namespace)
    assert done == (0, f"1:{publication.epoch}\n", "")
    assert (publication.kind, publication.data.decode()) == ("text", "hello, wörld")


def test_a_channel_without_a_history_has_no_positions(url: str) -> None:
    assert hubbub("publish", url, "chat", "hello") == (0, "0:\n", "")


@pytest.mark.parametrize(
    ("data", "stdin", "options", "kind", "published"),
    [
        ('{"a": 1}', b"", [], "text", b'{"a": 1}'),
        ('{"a": 1}', b"", ["--json"], "json", b'{"a":1}'),
        ('"text"', b"", ["--json"], "json", b'"text"'),
        ("-", b"one\n\n", [], "text", b"one\n"),
        ("-", b"[1,\n2]\n", ["--json"], "json", b"[1,2]"),
        ("-", b"\x00\xff\n", ["--binary"], "binary", b"\x00\xff\n"),
        ("", b"", [], "text", b""),
    ],
)
def test_how_data_is_published(
    url: str, data: str, stdin: bytes, options: list[str], kind: str, published: bytes
) -> None:
    done = hubbub("publish", url, "chat", data, "--history-ttl", "60", *options, stdin=stdin)
    assert (done.code, done.err) == (0, "")
    assert [(each.kind, each.data) for each in stored(url, "chat")] == [(kind, published)]


def test_each_line_is_published_as_a_message(url: str) -> None:
    done = hubbub("publish", url, "chat", "-", "--lines", "--history-size", "9", stdin=b"one\r\n\ntwo\nthree")
    assert [each.data for each in stored(url, "chat")] == [b"one", b"", b"two", b"three"]
    assert [line.partition(":")[0] for line in done.out.splitlines()] == ["1", "2", "3", "4"]


def test_a_wrong_line_ends_the_command_after_the_lines_before_it(url: str) -> None:
    words = ("publish", url, "chat", "-", "--lines", "--json", "--history-size", "9")
    done = hubbub(*words, stdin=b"[1]\n[2\n[3]\n")
    assert done.code == 2
    assert done.err.startswith("Error: Expected DATA to be JSON, but it is not: ")
    assert [each.data for each in stored(url, "chat")] == [b"[1]"]


def test_an_idempotency_key_publishes_once(url: str) -> None:
    words = ("publish", url, "orders", "paid", "--history-size", "9", "--idempotency-key", "7")
    assert hubbub(*words) == hubbub(*words)
    assert len(stored(url, "orders")) == 1


@pytest.mark.parametrize(
    ("words", "stdin", "message"),
    [
        (["chat", "{", "--json"], b"", "Expected DATA to be JSON, but it is not: "),
        (["chat", "NaN", "--json"], b"", "Expected DATA to be JSON, but it is not: "),
        (["chat", "-"], b"\xff", "Expected text in UTF-8, but got "),
        (["chat", "x", "--binary"], b"", "--binary reads standard input: give '-' as DATA."),
        (["chat", "x", "--lines"], b"", "--lines reads standard input: give '-' as DATA."),
        (["chat", "-", "--binary", "--json"], b"", "leave out --json or --binary"),
        (["chat", "-", "--binary", "--lines"], b"", "leave out --lines or --binary"),
        (["chat", "-", "--lines", "--idempotency-key", "k"], b"", "leave out --lines or --idempotency-key"),
        (["", "x"], b"", "Expected a channel name"),
        (["chat", "x", "--history-ttl", "0"], b"", "Expected ttl to be greater than 0, but got 0.0."),
    ],
)
def test_wrong_arguments_are_an_error_and_publish_nothing(
    url: str, words: list[str], stdin: bytes, message: str
) -> None:
    done = hubbub("publish", url, *words, stdin=stdin)
    assert done.code == 2
    assert done.out == ""
    assert message in done.err
    assert "Traceback" not in done.err


@pytest.mark.parametrize(
    ("url", "code", "message"),
    [
        ("redis://app:s3cret@127.0.0.1:{port}", 1, "Could not connect to Redis at 127.0.0.1:{port}"),
        (
            "postgresql://app:s3cret@127.0.0.1:{port}/db",
            1,
            "PostgreSQL at 127.0.0.1:{port}/db cannot be used",
        ),
        ("redis://app:s3cret@host:port:0", 2, "Expected host:port"),
        ("unknown://app:s3cret@host", 2, "Expected a URL with one of the schemes"),
        ("memory://", 2, "which stays within one: no subscriber would receive anything"),
    ],
)
def test_an_engine_that_cannot_be_used_is_one_line_without_the_password(
    url: str, code: int, message: str
) -> None:
    port = free_port()
    done = hubbub("publish", url.format(port=port), "chat", "hello")
    assert done.code == code
    assert done.err.startswith("Error: ")
    assert message.format(port=port) in done.err
    assert done.err.count("\n") == 1
    assert "s3cret" not in done.err
