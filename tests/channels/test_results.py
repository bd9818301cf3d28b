"""Results: the annotation decides what leaves the server."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import Any

import pytest

from hubbub.channels.results import Encoded, InvalidResult, encoder, json_encoder
from hubbub.channels.signature import parse_signature
from tests.channels.handlers import Said, Say


class Secret(Said):
    password: str


@dataclass
class Row:
    text: str
    password: str = "secret"


def encoded(annotation: Any, result: Any) -> Encoded | None:
    async def handler(message: Say) -> None: ...

    handler.__annotations__["return"] = annotation
    return encoder(parse_signature(handler, "on_publish"))(result)


@pytest.mark.parametrize(
    ("annotation", "result", "kind", "data"),
    [
        (Said, Secret(text="x", password="secret"), "json", b'{"type":"said","text":"x"}'),
        (Said, {"text": "x"}, "json", b'{"type":"said","text":"x"}'),
        (Said | None, Row("x"), "json", b'{"type":"said","text":"x"}'),
        (str, "x", "text", b"x"),
        (bytes, b"\x00", "binary", b"\x00"),
        (str | Said, Said(text="x"), "json", b'{"type":"said","text":"x"}'),
        (list[Said], [Secret(text="x", password="secret")], "json", b'[{"type":"said","text":"x"}]'),
        (inspect.Signature.empty, {"a": 1}, "json", b'{"a":1}'),
        (Any, "x", "text", b"x"),
    ],
)
def test_the_annotation_decides(annotation: Any, result: Any, kind: str, data: bytes) -> None:
    assert encoded(annotation, result) == Encoded(kind, data)  # type: ignore[arg-type]


@pytest.mark.parametrize("annotation", [None, Said | None, Any, inspect.Signature.empty])
def test_none_publishes_nothing(annotation: Any) -> None:
    assert encoded(annotation, None) is None


@pytest.mark.parametrize(
    ("annotation", "result"), [(Said, {"txt": "secret"}), (Said, None), (None, 7), (int, "secret")]
)
def test_a_result_that_does_not_fit_is_an_error_that_hides_it(annotation: Any, result: Any) -> None:
    with pytest.raises(InvalidResult, match=r"handler\(\) to return") as refused:
        encoded(annotation, result)
    assert "secret" not in str(refused.value)


def test_a_reply_is_json_always() -> None:
    async def handler() -> str | None: ...

    encode = json_encoder(parse_signature(handler, "rpc"))
    assert (encode("x"), encode(None)) == (b'"x"', b"null")
