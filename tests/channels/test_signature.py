"""Mistakes in handlers: each is refused where it is declared, with a message that names the mend."""

from __future__ import annotations

from collections.abc import AsyncIterator
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any

import pytest
from fastapi import Depends, Header, Path, Query, Request, Response, WebSocket
from pydantic import BaseModel

from hubbub import Channel, Connection, Hub, Identity, InvalidHandler
from hubbub.channels.signature import Purpose, is_async, parse_signature
from tests.channels.handlers import Said, Say, Typing, Untyped

if TYPE_CHECKING:
    from decimal import Decimal


class Opaque:
    """Pydantic knows nothing of it."""


async def with_request(request: Request) -> None: ...
async def with_body(message: Say) -> None: ...
async def with_channel(channel: Channel) -> None: ...


async def no_message() -> None: ...
async def two_models(first: Say, second: Typing) -> None: ...
async def two_texts(first: str, second: str) -> None: ...
async def variadic(message: Say, *rest: str) -> None: ...
async def positional(message: Say, /) -> None: ...
async def generator(message: Say) -> AsyncIterator[Said]:
    yield Said(text=message.text)


async def hidden(message: Decimal) -> None: ...
async def a_default(message: Say = Say(text="x")) -> None: ...  # noqa: B008
async def a_response(message: Say, response: Response) -> None: ...
async def a_request(message: Say, through: Annotated[None, Depends(with_request)]) -> None: ...
async def a_body(message: Say, through: Annotated[None, Depends(with_body)]) -> None: ...
async def a_bare_class(message: Say, through: Annotated[None, Depends(with_channel)]) -> None: ...
async def no_such_path(message: Say, other: Annotated[str, Path()]) -> None: ...
async def bad_result(message: Say) -> Opaque: ...  # type: ignore[empty-body]


@pytest.mark.parametrize(
    ("handler", "message"),
    [
        (no_message, "one parameter for the message, annotated with a model, str or bytes, but it has none"),
        (two_models, "'first' and 'second' are both models.*annotated Say | Typing"),
        (two_texts, "got 'first', 'second'. Mark query parameters with Annotated"),
        (variadic, "named parameters only"),
        (positional, "named parameters only"),
        (generator, "it is a generator. Publish each item with 'await hub.publish"),
        (hidden, "'Decimal' is not defined. Import the name outside of 'if TYPE_CHECKING:'"),
        (a_default, "no default for its message"),
        (a_response, "to ask for no Response"),
        (a_request, r"through → with_request.request asks for a Request. Ask for an HTTPConnection"),
        (a_body, r"through → with_body.message is one. Take the message in the handler itself"),
        (a_bare_class, r"through → with_channel.channel asks for Channel. Write channel: CurrentChannel"),
        (no_such_path, "path parameters .* in the pattern, but 'other' is not"),
        (bad_result, "a type that pydantic can validate"),
        (7, "Expected a function, but got 7"),
    ],
)
def test_an_on_publish_handler_that_cannot_work(handler: Any, message: str) -> None:
    room = Hub().channel("room:{room_id}")
    with pytest.raises(InvalidHandler, match=message):
        room.on_publish(handler)
    assert not room.functions.declared


async def refuses_by_false() -> bool: ...  # type: ignore[empty-body]


def test_on_subscribe_refuses_by_an_exception_alone() -> None:
    room = Hub().channel("room:{room_id}")
    with pytest.raises(InvalidHandler, match=r"annotated bool. Raise HTTPException\(403\) to refuse"):
        room.on_subscribe(refuses_by_false)


async def asks_for_channel(channel: Channel) -> None: ...
async def asks_for_identity(identity: Identity) -> Identity:
    return identity


@pytest.mark.parametrize(
    ("purpose", "handler", "message"),
    [
        ("rpc", asks_for_channel, "rpc is called for none"),
        ("on_disconnect", asks_for_channel, "there is none yet"),
        ("on_connect", asks_for_identity, "to return the Identity of a client, but it asks for one"),
        ("on_connect", refuses_by_false, "to return an Identity or None"),
    ],
)
def test_handlers_ask_for_no_more_than_there_is(purpose: Purpose, handler: Any, message: str) -> None:
    with pytest.raises(InvalidHandler, match=message):
        parse_signature(handler, purpose)


def test_parameters_are_divided_by_the_place_of_their_values() -> None:
    async def handler(
        message: Say | Typing,
        room_id: int,
        channel: Channel,
        client: Connection,
        identity: Identity | None,
        websocket: WebSocket,
        x: Annotated[str, Header()],
        limit: int = 5,
    ) -> None: ...

    found = parse_signature(handler, "on_publish", ("room_id",), locals())
    assert (found.message, found.path) == ("message", {"room_id": int})
    assert found.specials == {"channel": "channel", "client": "connection", "identity": "identity"}
    assert [each.name for each in found.injected] == ["websocket", "x", "limit"]


def test_the_message_may_be_of_a_local_class() -> None:
    class Local(BaseModel):
        text: str

    room = Hub().channel("room")

    @room.on_publish
    async def handler(message: Local) -> None: ...

    assert len(room.functions.declared) == 1


def test_query_parameters_stand_beside_the_message() -> None:
    async def handler(message: Say, word: str, page: Annotated[int, Query()]) -> None: ...

    found = parse_signature(handler, "on_publish")
    assert found.message == "message"
    assert [each.name for each in found.injected] == ["page", "word"]


async def handle(message: Untyped, extra: int) -> None: ...


def test_what_is_awaited() -> None:
    class Handler:
        async def __call__(self, message: Untyped) -> None: ...

    assert is_async(handle)
    assert is_async(partial(handle, extra=1))
    assert is_async(Handler())
    assert not is_async(lambda: None)
