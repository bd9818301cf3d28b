"""Messages of clients, good and bad ones."""

from __future__ import annotations

import gc
import json
import tracemalloc
import weakref
from collections.abc import Callable
from typing import Annotated, Any, Literal

import pytest
from pydantic import BaseModel, Field, TypeAdapter, create_model

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


def refused(model: Any, data: object) -> InvalidMessage:
    text = data if isinstance(data, str | bytes) else json.dumps(data)
    with pytest.raises(InvalidMessage) as info:
        as_model(model)(text)
    assert info.value.code == 1007
    return info.value


def size(error: InvalidMessage) -> int:
    return len(str(error)) + len(json.dumps(error.errors))


@pytest.mark.parametrize("make", [str, str.encode])
def test_a_message_that_fits_is_decoded(make: Any) -> None:
    parse = as_model(Client)
    assert parse(make('{"type": "say", "text": "hi"}')) == Say(text="hi")
    assert parse(make('{"type": "typing"}')) == Typing()


@pytest.mark.parametrize(
    "model", [lambda: Say, lambda: list[Say], lambda: Say | Typing, lambda: dict[str, int]]
)
def test_a_validator_is_built_once(model: Callable[[], Any], monkeypatch: pytest.MonkeyPatch) -> None:
    as_model(model())
    # Only for ``isinstance``: it cannot be called with a model.
    monkeypatch.setattr(decoding, "TypeAdapter", type("NoTypeAdapter", (), {}))
    # A type that is written where it is used is another object each time, and equal.
    as_model(model())


def test_unions_in_another_order_have_validators_of_their_own() -> None:
    first = Annotated[int | str, Field(union_mode="left_to_right")]
    second = Annotated[str | int, Field(union_mode="left_to_right")]
    parse_first: Any = as_model(first)  # type: ignore[arg-type]
    parse_second: Any = as_model(second)  # type: ignore[arg-type]
    assert (parse_first('"7"'), parse_second('"7"')) == (7, "7")


def test_a_type_that_cannot_be_hashed_is_a_model() -> None:
    limits: dict[str, Any] = {"most": 5}
    parse: Any = as_model(Annotated[int, limits])  # type: ignore[arg-type]
    assert parse("3") == 3


def test_validators_take_bounded_memory() -> None:
    models: list[weakref.ref[type[BaseModel]]] = []
    for number in range(2 * decoding.CACHED_MODELS):
        model = create_model(f"Model{number}")
        as_model(model)
        models.append(weakref.ref(model))
    del model
    gc.collect()
    assert sum(each() is not None for each in models) <= decoding.CACHED_MODELS


def test_fields_that_do_not_fit_are_named() -> None:
    error = refused(Numbers, {"numbers": [1, "x"], "named": {"a": ["y"]}})
    assert [each["loc"] for each in error.errors] == [("numbers", 1), ("named", "a", 0)]
    assert [each["type"] for each in error.errors] == ["int_parsing"] * 2
    assert str(error).startswith(
        "Expected a message that fits Numbers, but got one with errors: numbers.1: Input should be a valid"
    )
    assert all(set(each) == {"loc", "msg", "type"} for each in error.errors)


def test_the_error_for_an_unknown_type_names_the_known_ones() -> None:
    error = refused(Client, {"type": "shout"})
    assert "fits one of Say, Typing" in str(error)
    assert "'say', 'typing'" in str(error)


def test_a_long_type_is_not_echoed() -> None:
    error = refused(Client, {"type": "x" * 900_000})
    assert size(error) < 1000
    assert "'say', 'typing'" in str(error)


def test_long_names_are_not_echoed() -> None:
    error = refused(Numbers, {"named": {"n" * 50_000: [""] * 20}})
    assert len(error.errors) == decoding.MAX_ERRORS
    assert size(error) < 10_000


def test_deep_locations_are_not_echoed() -> None:
    data: Any = ["x"]
    for _ in range(50):
        data = {"children": data if isinstance(data, list) else [data]}
    assert size(refused(Tree, data)) < 10_000


def test_unprintable_characters_are_escaped() -> None:
    error = refused(Client, {"type": "a\nb\x1b[2J\u2028\u202e"})
    assert str(error).isprintable()
    assert "a\\nb\\x1b[2J\\u2028\\u202e" in str(error)


@pytest.mark.parametrize("count", [1, 10, 100])
def test_up_to_ten_errors_are_named(count: int) -> None:
    error = refused(Numbers, {"numbers": ["x"] * count})
    assert len(error.errors) == min(count, 10)


def test_more_than_a_hundred_errors_are_only_counted() -> None:
    data = json.dumps({"numbers": ["x"] * 340_000})
    tracemalloc.start()
    try:
        error = refused(Numbers, data)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert str(error) == "Expected a message that fits Numbers, but got one with 340000 errors."
    assert list(error.errors) == []
    # Described, each of them takes some hundred bytes of Python's memory.
    assert peak < 34_000_000


def test_the_error_does_not_keep_the_message() -> None:
    error = refused(Numbers, {"numbers": ["s3cret"]})
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
    error = refused(model, data)
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


def test_large_text_that_is_not_json_is_refused_by_the_model() -> None:
    assert "Invalid JSON" in str(refused(Numbers, "[" + '"",' * 100_000))


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
