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
    fields: dict[str, Any] = json.loads(tail.out())
    return fields


@pytest.mark.parametrize("engine", ["sqlite", "redis", "postgres"])
def test_the_history_comes_first_and_then_live_messages(
    engine: str, url: str, request: pytest.FixtureRequest
) -> None:
    if engine != "sqlite":
        url = request.getfixturevalue(f"{engine}_url")
    namespace = f"test-{token_hex(4)}"
    with Publisher(url, namespace=namespace) as publisher:
        first = publisher.publish("chat", "one", history=HISTORY)
        publisher.publish("chat", {"two": 2})
        with running("tail", url, "chat", "--since", "start", "--json", "--namespace", namespace) as tail:
            first_event = event(tail)
            assert first_event.pop("time") > 1_600_000_000
            assert len(first_event.pop("id")) > 8
            assert first_event == {
                "channel": "chat",
                "offset": 1,
                "epoch": first.epoch,
                "kind": "text",
                "data": "one",
            }
            second_event = event(tail)
            assert (second_event["kind"], second_event["data"]) == ("json", {"two": 2})
            publisher.publish("chat", b"\x00\xff")
            third_event = event(tail)
            assert (third_event["offset"], third_event["data_base64"]) == (3, "AP8=")
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
def test_the_options_for_where_to_begin(
    url: str, publisher: Publisher, options: list[str], offsets: list[int]
) -> None:
    for text in "1234":
        top = publisher.publish("chat", text, history=HISTORY)
    words = [option.format(epoch=top.epoch) for option in options]
    with running("tail", url, "chat", "--json", *words) as tail:
        assert [event(tail)["offset"] for _ in offsets] == offsets
        publisher.publish("chat", "5")
        assert event(tail)["offset"] == 5


@pytest.mark.parametrize("since", [Position(1, ""), Position(2, "another"), Position(99, "")])
def test_a_position_out_of_reach_is_reported_as_a_break_and_the_rest_follows(
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
        assert tail.err().startswith("Messages in chat are lost: ")
        assert tail.out().endswith("4")


def test_lines_of_text_cannot_control_the_terminal(url: str, publisher: Publisher) -> None:
    top = publisher.publish("chat", "hi \x1b[31mred\r\nthere \u202eevil \x9b é 🙂", history=HISTORY)
    publisher.publish("chat", b"\x1b\xff")
    with running("tail", url, "chat", "--since", "start") as tail:
        time, position, text = tail.out().split("  ")
        assert re.fullmatch(r"\d\d:\d\d:\d\d\.\d\d\d", time)
        assert position == f"1:{top.epoch}"
        assert text == r"hi \x1b[31mred\r\nthere \u202eevil \x9b é 🙂"
        assert tail.out().endswith(r"b'\x1b\xff'")


def test_a_character_that_the_terminal_lacks_is_escaped(url: str, publisher: Publisher) -> None:
    publisher.publish("chat", "🙂", history=HISTORY)
    env = {"PYTHONIOENCODING": "latin-1"}
    with running("tail", url, "chat", "--since", "start", env=env) as tail:
        assert tail.out().endswith(r"\U0001f642")


def test_lines_of_several_channels_name_the_channel(url: str, publisher: Publisher) -> None:
    publisher.publish("a", "1", history=HISTORY)
    publisher.publish("b", "2", history=HISTORY)
    with running("tail", url, "a", "b", "a", "--since", "start") as tail:
        assert [tail.out().split("  ")[2:] for _ in range(2)] == [["a", "1"], ["b", "2"]]
        publisher.publish("b", "3")
        assert tail.out().split("  ")[2:] == ["b", "3"]


def publish(publisher: Publisher, text: str) -> Position:
    """Publish, and retry until the server accepts it."""
    while True:
        try:
            return publisher.publish("chat", text, history=HISTORY, idempotency_key=text)
        except EngineUnavailable:
            continue


def test_an_outage_loses_no_message(server: RedisServer) -> None:
    with Publisher(server.url) as publisher:
        publish(publisher, "1")
        with running("tail", server.url, "chat", "--json", "--since", "start") as tail:
            assert event(tail)["data"] == "1"
            for text in ("2", "3"):
                server.kill()
                # The engine's warning, on standard error.
                assert "Lost Redis" in tail.err()
                server.start()
                # Perhaps before the tail has reconnected.
                publish(publisher, text)
                assert event(tail)["data"] == text


def test_an_outage_that_loses_the_history_is_reported_as_a_break(server: RedisServer) -> None:
    with Publisher(server.url) as publisher:
        publish(publisher, "1")
        with running("tail", server.url, "chat", "--json", "--since", "start") as tail:
            assert event(tail)["data"] == "1"
            server.kill()
            server.forget()
            server.start()
            publish(publisher, "2")
            assert event(tail)["event"] == "break"
            publish(publisher, "3")
            # "2" comes after the break, unless the break was noticed only after it.
            assert event(tail)["data"] == "3" or event(tail)["data"] == "3"


@pytest.mark.parametrize("sig", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_command_cleanly(url: str, publisher: Publisher, sig: signal.Signals) -> None:
    publisher.publish("chat", "1", history=HISTORY)
    with running("tail", url, "chat", "--since", "start") as tail:
        tail.out()
        assert tail.end(sig) == 0
        assert tail.rest_of_err() == []


def test_a_closed_pipe_ends_the_command_cleanly(url: str, publisher: Publisher) -> None:
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
        # Writing this line fails, since the pipe has no reader.
        publisher.publish("chat", "2")
        assert process.wait(DEADLINE) == 0
        assert process.stderr.read() == ""


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["chat", "--since", "17"], "Expected --since to be 'start' or OFFSET:EPOCH, such as 17:"),
        (["chat", "--since", "-1:ab"], "Expected --since to be 'start' or OFFSET:EPOCH"),
        (["chat", "--since", "1:ab", "--history", "2"], "--since and --history exclude each other"),
        (["a", "b", "--since", "1:ab"], "A position belongs to one channel"),
        (["a\tb"], "Expected a channel name without control characters"),
    ],
)
def test_wrong_arguments_are_an_error(url: str, words: list[str], message: str) -> None:
    done = hubbub("tail", url, *words)
    assert (done.code, done.out) == (2, "")
    assert message in done.err
    assert "Traceback" not in done.err


def test_an_unreachable_engine_is_an_error_at_once() -> None:
    port = free_port()
    done = hubbub("tail", f"redis://app:s3cret@127.0.0.1:{port}", "chat")
    assert done.code == 1
    assert f"Error: Could not connect to Redis at 127.0.0.1:{port}" in done.err
    assert "s3cret" not in done.err
    assert done.err.count("\n") == 1
    assert "stays within one" in hubbub("tail", "memory://", "chat").err
