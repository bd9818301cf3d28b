"""``hubbub tail``."""

from __future__ import annotations

import json
import re
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from secrets import token_hex
from typing import Any

import pytest

from hubbub import EngineUnavailable, History, Position, Publisher
from tests.clients import DEADLINE
from tests.commands import HUBBUB, Running, hubbub, running
from tests.engines.redis.server import RedisServer, redis_server
from tests.uvicorn_process import free_port

HISTORY = History(size=100, ttl=600)


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path / 'hub.db'}"


@pytest.fixture
def publisher(url: str) -> Iterator[Publisher]:
    with Publisher(url) as publisher:
        yield publisher


@pytest.fixture
def server() -> Iterator[RedisServer]:
    with redis_server() as server:
        yield server


def event(tail: Running) -> dict[str, Any]:
    told: dict[str, Any] = json.loads(tail.out())
    return told


@pytest.mark.parametrize("engine", ["sqlite", "redis", "postgres"])
def test_what_is_kept_and_then_what_is_published(
    engine: str, url: str, request: pytest.FixtureRequest
) -> None:
    if engine != "sqlite":
        url = request.getfixturevalue(f"{engine}_url")
    namespace = f"test-{token_hex(4)}"
    with Publisher(url, namespace=namespace) as publisher:
        first = publisher.publish("chat", "one", history=HISTORY)
        publisher.publish("chat", {"two": 2})
        with running("tail", url, "chat", "--since", "start", "--json", "--namespace", namespace) as tail:
            told = event(tail)
            assert told.pop("time") > 1_600_000_000
            assert len(told.pop("id")) > 8
            assert told == {
                "channel": "chat",
                "offset": 1,
                "epoch": first.epoch,
                "kind": "text",
                "data": "one",
            }
            assert (told := event(tail))["data"] == {"two": 2}
            assert told["kind"] == "json"
            publisher.publish("chat", b"\x00\xff")
            assert ((told := event(tail))["offset"], told["data_base64"]) == (3, "AP8=")
            assert tail.end(signal.SIGTERM) == 0


@pytest.mark.parametrize(
    ("options", "offsets"),
    [
        (["--history", "2"], [3, 4]),
        (["--history", "99"], [1, 2, 3, 4]),
        (["--since", "2:{epoch}"], [3, 4]),
        (["--since", "start"], [1, 2, 3, 4]),
        (["--since", "0:"], [1, 2, 3, 4]),
    ],
)
def test_from_where_it_begins(url: str, publisher: Publisher, options: list[str], offsets: list[int]) -> None:
    for text in "1234":
        top = publisher.publish("chat", text, history=HISTORY)
    words = [option.format(epoch=top.epoch) for option in options]
    with running("tail", url, "chat", "--json", *words) as tail:
        assert [event(tail)["offset"] for _ in offsets] == offsets
        publisher.publish("chat", "5")
        assert event(tail)["offset"] == 5


@pytest.mark.parametrize("since", [Position(1, ""), Position(2, "another"), Position(99, "")])
def test_what_cannot_be_made_up_for_is_told_and_it_goes_on(
    url: str, publisher: Publisher, since: Position
) -> None:
    history = History(size=2, ttl=600)
    for text in "12345":
        top = publisher.publish("chat", text, history=history)
    words = ("tail", url, "chat", "--since", f"{since.offset}:{since.epoch or top.epoch}")
    with running(*words, "--json") as tail:
        assert event(tail) == {"event": "break", "channel": "chat", "offset": 5, "epoch": top.epoch}
        assert [event(tail)["offset"] for _ in range(2)] == [4, 5]
    with running(*words) as tail:
        assert tail.err().startswith("Something is lost in chat: ")
        assert tail.out().endswith("4")


def test_lines_for_people_can_do_nothing_to_the_terminal(url: str, publisher: Publisher) -> None:
    top = publisher.publish("chat", "hi \x1b[31mred\r\nthere \u202eevil \x9b é 🙂", history=HISTORY)
    publisher.publish("chat", b"\x1b\xff")
    with running("tail", url, "chat", "--since", "start") as tail:
        told, position, text = tail.out().split("  ")
        assert re.fullmatch(r"\d\d:\d\d:\d\d\.\d\d\d", told)
        assert position == f"1:{top.epoch}"
        assert text == r"hi \x1b[31mred\r\nthere \u202eevil \x9b é 🙂"
        assert tail.out().endswith(r"b'\x1b\xff'")


def test_a_terminal_that_lacks_letters_is_no_reason_to_end(url: str, publisher: Publisher) -> None:
    publisher.publish("chat", "🙂", history=HISTORY)
    env = {"PYTHONIOENCODING": "latin-1"}
    with running("tail", url, "chat", "--since", "start", env=env) as tail:
        assert tail.out().endswith(r"\U0001f642")


def test_several_channels_are_told_apart(url: str, publisher: Publisher) -> None:
    publisher.publish("a", "1", history=HISTORY)
    publisher.publish("b", "2", history=HISTORY)
    with running("tail", url, "a", "b", "a", "--since", "start") as tail:
        assert [tail.out().split("  ")[2:] for _ in range(2)] == [["a", "1"], ["b", "2"]]
        publisher.publish("b", "3")
        assert tail.out().split("  ")[2:] == ["b", "3"]


def said(publisher: Publisher, text: str) -> Position:
    """Publish, as often as it takes."""
    while True:
        try:
            return publisher.publish("chat", text, history=HISTORY, idempotency_key=text)
        except EngineUnavailable:
            continue


def test_an_outage_costs_nothing(server: RedisServer) -> None:
    with Publisher(server.url) as publisher:
        said(publisher, "1")
        with running("tail", server.url, "chat", "--json", "--since", "start") as tail:
            assert event(tail)["data"] == "1"
            for text in ("2", "3"):
                server.kill()
                # It says so, and for as long as that takes, nothing.
                assert "Lost Redis" in tail.err()
                server.start()
                # Maybe before the tail is back.
                said(publisher, text)
                assert event(tail)["data"] == text


def test_an_outage_that_loses_the_history_is_told(server: RedisServer) -> None:
    with Publisher(server.url) as publisher:
        said(publisher, "1")
        with running("tail", server.url, "chat", "--json", "--since", "start") as tail:
            assert event(tail)["data"] == "1"
            server.kill()
            server.forget()
            server.start()
            said(publisher, "2")
            assert event(tail)["event"] == "break"
            said(publisher, "3")
            # The second is in the break, if that was noticed afterwards only.
            assert event(tail)["data"] == "3" or event(tail)["data"] == "3"


@pytest.mark.parametrize("sig", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_it_cleanly(url: str, publisher: Publisher, sig: signal.Signals) -> None:
    publisher.publish("chat", "1", history=HISTORY)
    with running("tail", url, "chat", "--since", "start") as tail:
        tail.out()
        assert tail.end(sig) == 0
        assert tail.process.stderr is not None
        assert tail._err.empty()


def test_a_closed_pipe_ends_it_cleanly(url: str, publisher: Publisher) -> None:
    publisher.publish("chat", "1", history=HISTORY)
    with subprocess.Popen(
        [HUBBUB, "tail", url, "chat", "--since", "start"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline().endswith("1\n")
        process.stdout.close()
        # What finds out that nobody reads any more.
        publisher.publish("chat", "2")
        assert process.wait(DEADLINE) == 0
        assert process.stderr.read() == ""


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["chat", "--since", "17"], "Expected --since to be 'start' or OFFSET:EPOCH, such as 17:"),
        (["chat", "--since", "-1:ab"], "Expected --since to be 'start' or OFFSET:EPOCH"),
        (["chat", "--since", "1:ab", "--history", "2"], "Leave out --since or --history"),
        (["a", "b", "--since", "1:ab"], "A position is that of one channel"),
        (["a\tb"], "Expected a channel name without control characters"),
    ],
)
def test_what_is_wrong_is_said(url: str, words: list[str], message: str) -> None:
    done = hubbub("tail", url, *words)
    assert (done.code, done.out) == (2, "")
    assert message in done.err
    assert "Traceback" not in done.err


def test_an_engine_that_is_not_there_is_told_at_once() -> None:
    port = free_port()
    done = hubbub("tail", f"redis://app:s3cret@127.0.0.1:{port}", "chat")
    assert done.code == 1
    assert f"Error: Could not connect to Redis at 127.0.0.1:{port}" in done.err
    assert "s3cret" not in done.err
    assert done.err.count("\n") == 1
    assert "stays within one" in hubbub("tail", "memory://", "chat").err
