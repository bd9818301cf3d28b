"""The handler for a message: by its type, and mistakes in the types of several handlers."""

from __future__ import annotations

from typing import Any, Literal

import pytest
from pydantic import BaseModel

from hubbub import ChannelDeclaration, Hub, InvalidHandler, InvalidMessage
from hubbub.channels.messages import MessageTable, peek
from hubbub.channels.signature import parse_signature
from tests.channels.handlers import Say, Typing, Untyped


class Rpc(BaseModel):
    type: Literal["rpc"] = "rpc"


class Again(BaseModel):
    type: Literal["say"] = "say"


async def say(message: Say) -> None: ...
async def again(message: Again) -> None: ...
async def typing(message: Typing) -> None: ...
async def both(message: Say | Typing) -> None: ...
async def untyped(message: Untyped) -> None: ...
async def text(message: str) -> None: ...
async def more_text(message: str) -> None: ...
async def binary(message: bytes) -> None: ...
async def rpc(message: Rpc) -> None: ...
async def equal(message: Say | Again) -> None: ...


@pytest.mark.parametrize(
    ("handlers", "message"),
    [
        ((say, again), r"one handler for messages of the type 'say' in 'room', but again\(\) is the second"),
        ((say, text), "take either str or models"),
        ((text, say), "take either str or models"),
        ((text, more_text), r"one on_publish handler for str in 'room', but more_text\(\) is the second"),
        ((rpc,), "'rpc' is one of Hubbub's"),
        (
            (say, untyped),
            r"there are several handlers, but that of untyped\(\) has none. Add it: type",
        ),
        ((untyped, say), r"that of untyped\(\) has none"),
        ((equal,), "different types, but Again has 'say' like Say"),
    ],
)
def test_messages_that_could_not_be_told_apart(handlers: tuple[Any, ...], message: str) -> None:
    room = Hub().channel("room")
    *first, last = handlers
    for each in first:
        room.on_publish(each)
    with pytest.raises(InvalidHandler, match=message):
        room.on_publish(last)


@pytest.mark.parametrize(("client_publish", "handler"), [(True, text), (True, say), ("binary", binary)])
def test_a_handler_and_client_publish_do_not_take_the_same(client_publish: Any, handler: Any) -> None:
    with pytest.raises(InvalidHandler, match="either client_publish="):
        ChannelDeclaration("room", client_publish=client_publish).on_publish(handler)


def test_binary_frames_stand_beside_text() -> None:
    room = Hub().channel("room")
    for each in (say, typing, binary):
        room.on_publish(each)
    ChannelDeclaration("room", client_publish=True).on_publish(binary)


def table(*handlers: Any) -> MessageTable[str]:
    found: MessageTable[str] = MessageTable("'room'")
    for each in handlers:
        found.add(each.__name__, parse_signature(each, "on_publish"))
    return found


def test_the_type_picks_the_handler() -> None:
    found = table(say, typing)
    for data, name in (('{"type":"say","text":"x"}', "say"), ('{"text":"x","type":"typing"}', "typing")):
        assert found.find(data, peek(data))[0] == name
    for data in ('{"type":"other"}', '{"text":"x"}', "[]", "7", "nonsense", '{"type":7}'):
        with pytest.raises(InvalidMessage):
            found.find(data, peek(data))


def test_a_single_handler_needs_no_type() -> None:
    handler, parse = table(both).find('{"text":"x"}', None)
    assert (handler, parse('{"type":"typing"}')) == ("both", Typing())
    # The error names the fields of one model.
    handler, parse = table(both).find('{"type":"say","text":7}', "say")
    with pytest.raises(InvalidMessage) as refused:
        parse('{"type":"say","text":7}')
    assert [error["loc"] for error in refused.value.errors] == [("text",)]


def test_each_handler_is_there_once() -> None:
    assert sorted(table(both, binary)) == ["binary", "both"]
    assert list(table(text)) == ["text"]
