from __future__ import annotations

import json
import math
import multiprocessing
import re
import unicodedata
from array import array
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from enum import Enum, IntEnum, StrEnum
from ipaddress import ip_address
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, computed_field

from hubbub.core.publication import (
    START,
    Position,
    Publication,
    check_channel,
    check_key,
    check_position,
    encode,
    encode_json,
    publication_ids,
)
from hubbub.exceptions import HubbubError, InvalidChannel, InvalidData, InvalidPosition


class Said(BaseModel):
    user: str
    at: datetime


class Reading(BaseModel):
    value: float


class Broken(BaseModel):
    @computed_field
    def total(self) -> int:
        raise LookupError("no total")


class Node(BaseModel):
    child: Node | None = None


@dataclass
class Point:
    x: int
    y: float


class Size(Enum):
    SMALL = "small"


class Level(IntEnum):
    HIGH = 3


class Color(StrEnum):
    RED = "red"


NOON = datetime(2024, 2, 29, 12, tzinfo=UTC)


# encode()


@pytest.mark.parametrize("text", ["Hello", "", "Grüße, 世界 🎉", '{"a": 1}', "\x00\u2028"])
def test_str_is_text(text: str) -> None:
    assert encode(text) == ("text", text.encode())


def test_an_enum_of_strings_is_text() -> None:
    assert encode(Color.RED) == ("text", b"red")


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"\x00\xff", b"\x00\xff"),
        (b"", b""),
        (bytearray(b"abc"), b"abc"),
        (memoryview(b"abc"), b"abc"),
        (memoryview(b"abcdef")[::2], b"ace"),
        (memoryview(array("H", [0x4141, 0x4242])), b"AABB"),
    ],
    ids=["bytes", "empty", "bytearray", "memoryview", "memoryview with gaps", "memoryview of numbers"],
)
def test_bytes_are_binary(data: object, expected: bytes) -> None:
    kind, encoded = encode(data)
    assert (kind, encoded) == ("binary", expected)
    assert type(encoded) is bytes


def test_a_buffer_that_changes_later_does_not_change_the_payload() -> None:
    buffer = bytearray(b"before")
    _, encoded = encode(buffer)
    buffer[:] = b"after!"
    assert encoded == b"before"


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        ({"a": [1, 2.5, None, True]}, {"a": [1, 2.5, None, True]}),
        ([], []),
        ((1, 2), [1, 2]),
        (None, None),
        (False, False),
        (0, 0),
        (10**30, 10**30),
        ({1: "one"}, {"1": "one"}),
        (Said(user="Ann", at=NOON), {"user": "Ann", "at": "2024-02-29T12:00:00Z"}),
        ([Said(user="Ann", at=NOON)], [{"user": "Ann", "at": "2024-02-29T12:00:00Z"}]),
        (Point(1, 0.5), {"x": 1, "y": 0.5}),
        (NOON, "2024-02-29T12:00:00Z"),
        (date(2024, 2, 29), "2024-02-29"),
        (timedelta(seconds=5), "PT5S"),
        (Decimal("1.50"), "1.50"),
        (UUID(int=1), "00000000-0000-0000-0000-000000000001"),
        (ip_address("::1"), "::1"),
        (Size.SMALL, "small"),
        (Level.HIGH, 3),
        ({"text": "Grüße 🎉", "raw": b"ascii"}, {"text": "Grüße 🎉", "raw": "ascii"}),
    ],
    ids=repr,
)
def test_anything_else_is_json(data: object, expected: Any) -> None:
    kind, encoded = encode(data)
    assert kind == "json"
    assert json.loads(encoded) == expected


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
def test_numbers_that_json_does_not_have_are_null(number: float) -> None:
    # A front end's JSON.parse() refuses a NaN, and with it the whole message.
    assert encode(number) == ("json", b"null")
    assert encode({"values": [number]}) == ("json", b'{"values":[null]}')
    assert encode(Reading(value=number)) == ("json", b'{"value":null}')


def test_encode_json_writes_a_str_as_json() -> None:
    assert encode_json('say "hi"') == b'"say \\"hi\\""'


TEXT = st.text(st.characters(codec="utf-8"))
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXT,
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(TEXT, inner, max_size=5),
    max_leaves=20,
)


@given(JSON)
def test_json_is_read_back_as_it_was_written(data: object) -> None:
    assert json.loads(encode_json(data)) == data


@pytest.mark.parametrize("text", ["\ud800", "half of a pair: \udc00!"])
def test_text_with_a_lone_surrogate_is_refused(text: str) -> None:
    with pytest.raises(InvalidData, match=r"^Expected text .* UTF-8, but got a str with .*surrogate") as info:
        encode(text)
    assert isinstance(info.value.__cause__, UnicodeEncodeError)


@pytest.mark.parametrize(
    ("data", "named"),
    [
        (object(), "object"),
        (len, "builtin_function_or_method"),
        ({"when": object()}, "dict"),
        ([b"\xff"], "list"),
        ({"\ud800": 1}, "dict"),
        (["\ud800"], "list"),
        (Broken(), "Broken"),
    ],
    ids=["object", "function", "object inside", "binary inside", "surrogate key", "surrogate", "raises"],
)
def test_data_that_cannot_be_written_as_json_is_refused(data: object, named: str) -> None:
    pattern = rf"^Expected something .* JSON \(a model.*\), but got {named}: ."
    with pytest.raises(InvalidData, match=pattern) as info:
        encode(data)
    assert info.value.__cause__ is not None


def test_the_error_names_its_cause() -> None:
    with pytest.raises(InvalidData, match="no total"):
        encode({"broken": Broken()})


def a_list_in_itself() -> object:
    data: list[object] = []
    data.append(data)
    return data


def a_dict_in_itself() -> object:
    data: dict[str, object] = {}
    data["self"] = data
    return data


def a_model_in_itself() -> object:
    node = Node()
    node.child = node
    return node


def a_deep_list() -> object:
    data: list[object] = []
    for _ in range(10_000):
        data = [data]
    return data


@pytest.mark.parametrize("make", [a_list_in_itself, a_dict_in_itself, a_model_in_itself, a_deep_list])
def test_data_without_a_bottom_is_refused(make: Any) -> None:
    with pytest.raises(InvalidData, match=r"Circular reference|depth exceeded"):
        encode(make())


def test_invalid_data_can_be_caught_as_a_type_error() -> None:
    assert issubclass(InvalidData, HubbubError)
    assert issubclass(InvalidData, TypeError)


# check_channel()


@pytest.mark.parametrize(
    "name",
    ["a", "room:1", "a b", "Grüße", "世界", "🎉", "../$%#[]{}", "x" * 255, "🎉" * 255],
    ids=lambda name: f"{name[:12]} ({len(name)})",
)
def test_a_channel_name_is_returned_as_it_is(name: str) -> None:
    assert check_channel(name) is name


def test_an_empty_channel_name_is_refused() -> None:
    with pytest.raises(InvalidChannel, match=r'^Expected a channel name such as "chat".*, but got an empty'):
        check_channel("")


def test_a_channel_name_of_256_characters_is_refused() -> None:
    name = "room:" + "x" * 251
    with pytest.raises(InvalidChannel, match=r"at most 255 characters, but got 256 .*'room:xxx"):
        check_channel(name)


def test_the_error_for_a_huge_channel_name_is_not_huge() -> None:
    with pytest.raises(InvalidChannel, match="but got 1000000 ") as info:
        check_channel("x" * 1_000_000)
    assert len(str(info.value)) < 200


@pytest.mark.parametrize(
    "character", [*map(chr, range(0x20)), *map(chr, range(0x7F, 0xA0)), "\u2028", "\u2029"]
)
def test_control_characters_in_a_channel_name_are_refused(character: str) -> None:
    pattern = re.escape(f"without control characters, but got {character!r} at index 4 of ")
    with pytest.raises(InvalidChannel, match=pattern):
        check_channel(f"room{character}1")


@pytest.mark.parametrize("surrogate", [0xD800, 0xDBFF, 0xDC00, 0xDFFF])
def test_a_lone_surrogate_in_a_channel_name_is_refused(surrogate: int) -> None:
    with pytest.raises(InvalidChannel, match="at index 0 of"):
        check_channel(chr(surrogate) + "x")


@pytest.mark.parametrize(
    ("name", "named"), [(b"chat", "bytes"), (None, "NoneType"), (1, "int"), (["chat"], "list")]
)
def test_a_channel_name_that_is_no_str_is_refused(name: Any, named: str) -> None:
    with pytest.raises(InvalidChannel, match=f"^Expected a channel name as str, but got {named}\\.$"):
        check_channel(name)


@given(st.text(min_size=1, max_size=300))
def test_a_name_or_the_error_about_it_can_be_sent_and_logged(name: str) -> None:
    try:
        shown = check_channel(name)
    except InvalidChannel as exc:
        # The message goes to logs and to clients.
        shown = str(exc)
    assert shown.encode()
    assert len(shown.splitlines()) == 1
    assert "Cc" not in map(unicodedata.category, shown)


def test_invalid_channel_can_be_caught_as_a_value_error() -> None:
    assert issubclass(InvalidChannel, HubbubError)
    assert issubclass(InvalidChannel, ValueError)


# Publication, Position


def test_a_publication_does_not_change() -> None:
    publication = Publication("chat", b"Hello", "text")
    with pytest.raises(AttributeError):
        publication.data = b"Bye"  # type: ignore[misc]


def test_a_publication_is_for_everyone_unless_it_says_so() -> None:
    assert Publication("chat", b"Hello", "text").exclude is None


def test_a_position_is_an_offset_and_an_epoch() -> None:
    offset, epoch = Position(7, "x")
    assert (offset, epoch) == (7, "x")


IDS = st.text(st.characters(codec="ascii", categories=["L", "N", "P"]), max_size=64)


@given(st.integers(0, 10**18 - 1), IDS)
def test_the_id_of_a_position_is_read_back(offset: int, epoch: str) -> None:
    position = Position(offset, epoch)
    assert Position.parse(str(position)) == position
    assert check_position(str(position)) == check_position(position) == position


def test_the_id_of_the_start_is_a_word() -> None:
    assert str(START) == "start"
    assert Position.parse("start") == START


@pytest.mark.parametrize(
    "text",
    [
        *(
            "",
            "17",
            ":",
            ":a",
            "a:b",
            "-1:a",
            "+1:a",
            "1.0:a",
            " 1:a",
            "1:a ",
            "1:a\n",
            "1:é",
            "\u0661:a",
            "START",
        ),
        *("1" * 19 + ":a", "1:" + "a" * 65, "1:a\x00", "9" * 5000 + ":a"),
    ],
)
def test_text_that_is_not_an_id_is_refused(text: str) -> None:
    with pytest.raises(InvalidPosition, match="Expected the id of a position, such as") as refused:
        Position.parse(text)
    assert len(str(refused.value)) < 300


def test_a_position_that_no_channel_can_have_is_refused() -> None:
    for position in (Position(-1, "a"), Position(2**63, "a"), Position(1, "a b")):
        with pytest.raises(InvalidPosition):
            check_position(position)
    wrong: Any = (1, "a")
    with pytest.raises(TypeError, match="Expected a position or its id as text, but got tuple"):
        check_position(wrong)


# Keys


@pytest.mark.parametrize("key", ["1", "x" * 255, "order 7 größe", "\n", None])
def test_idempotency_keys_are_accepted(key: str | None) -> None:
    assert check_key(key) == key


@pytest.mark.parametrize(
    ("key", "error", "message"),
    [
        ("", ValueError, "an empty string"),
        ("x" * 256, ValueError, "at most 255 characters, but got 256 that begin with 'xxx"),
        ("a\0b", ValueError, "without NUL, but got 'a"),
        ("\ud800", ValueError, "written as UTF-8"),
        (7, TypeError, "as str, but got int"),
        (b"7", TypeError, "as str, but got bytes"),
    ],
)
def test_other_values_are_not_idempotency_keys(key: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        check_key(key)


# Ids


def test_any_thread_may_take_an_id() -> None:
    ids = publication_ids()
    with ThreadPoolExecutor(8) as pool:
        taken = list(pool.map(lambda _: [next(ids) for _ in range(1000)], range(8)))
    assert len({each for some in taken for each in some}) == 8000


def test_a_child_that_is_forked_has_ids_of_its_own() -> None:
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe()
    ids = publication_ids()
    next(ids)
    children = [context.Process(target=lambda: theirs.send(next(ids))) for _ in range(2)]
    for child in children:
        child.start()
    for child in children:
        child.join()
    assert len({next(ids), ours.recv(), ours.recv()}) == 3
