"""Messages of clients, good and bad ones."""

from __future__ import annotations

import json
import tracemalloc
from typing import Annotated, Any, Literal

import pytest
from pydantic import BaseModel, Field, TypeAdapter

from hubbub.connection import decoding
from hubbub.connection.decoding import as_json, as_model, excerpt
from hubbub.exceptions import InvalidMessage


class Say(BaseModel):
    type: Literal["say"] = "say"
    text: str = ""


class Typing(BaseModel):
    type: Literal["typing"] = "typing"


class Numbers(BaseModel):
    numbers: list[int] = []
    named: dict[str, list[int]] = {}


class Tree(BaseModel):
    children: list[Tree | int] = []


Client: Any = TypeAdapter(Annotated[Say | Typing, Field(discriminator="type")])


def close_for(model: Any, data: object) -> InvalidMessage:
    text = data if isinstance(data, str | bytes) else json.dumps(data)
    with pytest.raises(InvalidMessage) as info:
        as_model(model)(text)
    assert info.value.code == 1007
    return info.value


def size(error: InvalidMessage) -> int:
    return len(str(error)) + len(json.dumps(error.errors))


@pytest.mark.parametrize("make", [str, str.encode])
def test_what_fits_is_taken(make: Any) -> None:
    parse = as_model(Client)
    assert parse(make('{"type": "say", "text": "hi"}')) == Say(text="hi")
    assert parse(make('{"type": "typing"}')) == Typing()


def test_what_does_not_fit_is_named() -> None:
    error = close_for(Numbers, {"numbers": [1, "x"], "named": {"a": ["y"]}})
    assert [each["loc"] for each in error.errors] == [("numbers", 1), ("named", "a", 0)]
    assert [each["type"] for each in error.errors] == ["int_parsing"] * 2
    assert str(error).startswith(
        "Expected a message that fits Numbers, but numbers.1: Input should be a valid"
    )
    assert all(set(each) == {"loc", "msg", "type"} for each in error.errors)


def test_an_unknown_type_is_told_which_there_are() -> None:
    error = close_for(Client, {"type": "shout"})
    assert "fits one of Say,Typing" in str(error)
    assert "'say', 'typing'" in str(error)


def test_a_long_type_is_not_echoed() -> None:
    error = close_for(Client, {"type": "x" * 900_000})
    assert size(error) < 1000
    assert "'say', 'typing'" in str(error)


def test_long_names_are_not_echoed() -> None:
    error = close_for(Numbers, {"named": {"n" * 50_000: [""] * 20}})
    assert len(error.errors) == decoding.MAX_ERRORS
    assert size(error) < 10_000


def test_deep_locations_are_not_echoed() -> None:
    data: Any = ["x"]
    for _ in range(50):
        data = {"children": data if isinstance(data, list) else [data]}
    assert size(close_for(Tree, data)) < 10_000


def test_nothing_unprintable_is_echoed() -> None:
    error = close_for(Client, {"type": "a\nb\x1b[2J\u2028\u202e"})
    assert str(error).isprintable()
    assert "a\\nb\\x1b[2J\\u2028\\u202e" in str(error)


@pytest.mark.parametrize("count", [1, 10, 100])
def test_up_to_ten_errors_are_named(count: int) -> None:
    error = close_for(Numbers, {"numbers": ["x"] * count})
    assert len(error.errors) == min(count, 10)


def test_errors_that_are_too_many_are_only_counted() -> None:
    data = json.dumps({"numbers": ["x"] * 340_000})
    tracemalloc.start()
    try:
        error = close_for(Numbers, data)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert str(error) == "Expected a message that fits Numbers, but it does not, in 340000 places."
    assert list(error.errors) == []
    # Described, each of them takes some hundred bytes of Python's memory.
    assert peak < 34_000_000


def test_the_error_does_not_keep_what_the_client_has_sent() -> None:
    error = close_for(Numbers, {"numbers": ["s3cret"]})
    assert error.__cause__ is None
    assert error.__context__ is None


# Many errors in long locations


def nested(levels: int, values: int, name: str = "children") -> str:
    text = ",".join(['""'] * values)
    for _ in range(levels):
        text = f'{{"{name}": [{text}]}}'
    return text


@pytest.mark.parametrize(
    ("model", "data"),
    [
        (Numbers, json.dumps({"named": {"n" * 500_000: [""] * 50_000}})),
        (Numbers, json.dumps({"named": {'"' * 100_000: [""] * 50_000}})),
        (Numbers, json.dumps({"named": {"ü" * 100_000: [""] * 50_000}}, ensure_ascii=False).encode()),
        (Tree, nested(100, 100_000)),
        (dict[str, Any], nested(100, 5_000, "n" * 2_000)),
        (dict[str, Any], f'{{"a": {nested(1, 50_000, "n" * 100_000)}, "a": 1}}'),
    ],
    ids=["long name", "escaped name", "bytes", "deep", "deep and long", "twice"],
)
def test_locations_of_errors_that_would_take_gigabytes_are_refused_before(
    model: Any, data: str | bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(TypeAdapter, "validate_json", None)
    error = close_for(model, data)
    assert "fewer values, less nesting or shorter names" in str(error)


@pytest.mark.parametrize(
    "data",
    [
        {"numbers": list(range(150_000))},
        {"named": {f"a name that is rather long, number {n}": [n] for n in range(15_000)}},
        {"named": {"n" * 200_000: [1]}},
        {"named": {'"' * 20_000: list(range(1000))}},
    ],
    ids=["many", "many names", "one long name", "escaped name"],
)
def test_large_messages_that_fit_are_taken(data: dict[str, Any]) -> None:
    assert as_model(Numbers)(json.dumps(data)).model_dump() == {"numbers": [], "named": {}, **data}


def test_a_deep_and_large_message_that_fits_is_taken() -> None:
    points = [[number / 7, number / 3] for number in range(20_000)]
    message = {"features": [{"geometry": {"coordinates": [points]}}]}
    assert as_model(dict[str, Any])(json.dumps(message)) == message


def test_what_is_no_json_is_the_models_to_refuse() -> None:
    assert "Invalid JSON" in str(close_for(Numbers, "[" + '"",' * 100_000))


# JSON


def test_json_without_a_model() -> None:
    assert as_json('{"a": [1]}') == {"a": [1]}
    with pytest.raises(InvalidMessage, match="Expected JSON") as info:
        as_json('{"a": ' + "x" * 900_000)
    assert len(str(info.value)) < 1000


def test_an_excerpt_leaves_out_the_middle() -> None:
    assert excerpt("abc", 3) == "abc"
    assert excerpt("abcdefgh", 4) == "ab…gh"
    assert excerpt("a\0b", 10) == "a\\x00b"
