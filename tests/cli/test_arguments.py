"""Arguments of the commands: where they find the URL of the engine."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.commands import hubbub, running

VARIABLE = "HUBBUB_URL"


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path / 'hub.db'}"


def test_the_url_may_be_in_the_environment(url: str) -> None:
    env = {VARIABLE: url}
    published = hubbub("publish", "chat", "hello", "--history-size", "5", env=env)
    assert (published.code, published.err) == (0, "")
    with running("tail", "chat", "--since", "start", "--json", env=env) as tail:
        assert json.loads(tail.out())["data"] == "hello"
    doctor = hubbub("doctor", env=env)
    assert doctor.code == 0
    assert "SQLiteEngine" in doctor.out


def test_a_url_argument_takes_precedence(url: str) -> None:
    env = {VARIABLE: "redis://127.0.0.1:1"}
    published = hubbub("publish", url, "chat", "hello", "--history-size", "5", env=env)
    assert (published.code, published.err) == (0, "")
    with running("tail", url, "chat", "--since", "start", "--json", env=env) as tail:
        assert json.loads(tail.out())["data"] == "hello"
    assert hubbub("doctor", url, env=env).code == 0


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("publish", "chat", "hello"), "The URL of the engine is missing"),
        (("tail", "chat"), "The URL of the engine is missing"),
        (("doctor",), "Missing argument 'URL'"),
    ],
)
def test_a_missing_url_is_an_error_that_says_where_to_put_it(words: tuple[str, ...], message: str) -> None:
    done = hubbub(*words, env={VARIABLE: ""})
    assert done.code == 2
    assert message in done.err


@pytest.mark.parametrize("env", [{VARIABLE: ""}, {VARIABLE: "memory://"}])
@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("publish", "redis://app:s3cret@db", "chat"), "CHANNEL or DATA is missing after the URL."),
        (("tail", "redis://app:s3cret@db"), "The name of a channel is missing after the URL."),
        (("publish", "redis://app:s3cret@db", "chat", "two", "words"), "Put a message with spaces in quotes"),
    ],
)
def test_a_url_is_not_taken_for_a_channel(words: tuple[str, ...], message: str, env: dict[str, str]) -> None:
    done = hubbub(*words, env=env)
    assert done.code == 2
    assert message in done.err
    assert "s3cret" not in done.err
