"""Event streams in tests."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Annotated

import pytest
from fastapi import FastAPI, Header, HTTPException
from fastapi.responses import Response, StreamingResponse
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel

from hubbub.testing import Closed, Refused, events
from hubbub.testing.event_stream import Event, Parser
from tests.clients import DEADLINE

app = FastAPI()


class Tick(BaseModel):
    number: int


@app.get("/ticks")
async def ticks(last_event_id: Annotated[int, Header()] = 0, count: int = 1_000_000) -> Response:
    async def stream() -> AsyncIterator[str]:
        yield "retry: 2000\n\nevent: subscribed\ndata: {}\n\n"
        for number in range(last_event_id + 1, last_event_id + count + 1):
            yield f'id: {number}\ndata: {{"number":{number}}}\n\n'
            await asyncio.sleep(0)

    return StreamingResponse(stream(), media_type="text/event-stream")


@app.get("/answers/{how}")
async def answers(how: str) -> Response:
    if how == "refuses":
        raise HTTPException(403, "not yours", headers={"X-Why": "closed"})
    if how == "nothing":
        return Response(status_code=204)
    if how == "fails":
        raise ZeroDivisionError("a bug")

    async def silent() -> AsyncIterator[str]:
        yield ": hello\n\n"
        if how == "breaks":
            raise ZeroDivisionError("a bug")
        await asyncio.Event().wait()

    if how == "json":
        return Response("{}", media_type="application/json")
    return StreamingResponse(silent(), media_type="text/event-stream")


async def test_an_endless_stream_is_read() -> None:
    async with events(app, path="/ticks") as stream:
        assert stream.headers["content-type"].startswith("text/event-stream")
        assert await stream.receive_event() == Event("subscribed", "{}", "")
        assert await stream.receive(Tick) == Tick(number=1)
        assert stream.last_event_id == "1"
        assert stream.retry == 2000
        assert await stream.receive() == {"number": 2}
    assert asyncio.all_tasks() == {asyncio.current_task()}
    async with events(app, path="/ticks", last_event_id=stream.last_event_id) as stream:
        assert stream.last_event_id == "2"
        # Events with names are skipped.
        assert await stream.receive(Tick) == Tick(number=3)


async def test_a_stream_ends() -> None:
    async with events(app, path="/ticks", query={"count": 3}) as stream:
        assert [event.id async for event in stream] == ["", "1", "2", "3"]
        with pytest.raises(Closed, match="the stream has ended") as closed:
            await stream.receive()
        assert closed.value.code is None


async def test_a_wait_for_an_event_ends_at_its_deadline() -> None:
    async with events(app, path="/answers/silent") as stream:
        with pytest.raises(TimeoutError, match=r"No event arrived within 0\.01 s; .* has received 0 events"):
            await stream.receive(timeout=0.01)


@pytest.mark.parametrize("line", [": comment", "event: other\ndata: x", "data: never complete"])
async def test_no_stream_of_other_lines_moves_the_deadline(line: str) -> None:
    plain = FastAPI()

    @plain.get("/")
    async def endpoint() -> Response:
        async def stream() -> AsyncIterator[str]:
            while True:
                yield line + ("\n" if line.startswith("data") else "\n\n")
                await asyncio.sleep(0)

        return StreamingResponse(stream(), media_type="text/event-stream")

    async with events(plain, path="/") as stream:
        with pytest.raises(TimeoutError, match=r"No event arrived within 0\.1 s"):
            await stream.receive(timeout=0.1)


async def test_an_endless_answer_of_another_type_is_cut() -> None:
    plain = FastAPI()

    @plain.get("/")
    async def endpoint() -> Response:
        async def stream() -> AsyncIterator[bytes]:
            while True:
                yield bytes(100_000)

        return StreamingResponse(stream(), media_type="text/plain")

    with pytest.raises(Refused) as refused:
        async with events(plain, path="/", timeout=DEADLINE):
            raise AssertionError
    assert 1_048_576 < len(refused.value.body) <= 1_148_576


@pytest.mark.parametrize(
    ("how", "status", "text"),
    [
        ("refuses", 403, "refused with 403: not yours"),
        ("nothing", 204, "refused with 204"),
        ("json", 200, "Expected text/event-stream, but got application/json"),
    ],
)
async def test_other_answers_are_refusals(how: str, status: int, text: str) -> None:
    with pytest.raises(Refused, match=text) as refused:
        async with events(app, path=f"/answers/{how}"):
            raise AssertionError
    assert refused.value.status_code == status
    assert refused.value.headers.get("x-why") == ("closed" if how == "refuses" else None)


async def test_bugs_of_the_app_are_raised() -> None:
    with pytest.raises(ZeroDivisionError, match="a bug"):
        async with events(app, path="/answers/fails"):
            raise AssertionError
    async with events(app, path="/answers/breaks") as stream:
        with pytest.raises(ZeroDivisionError, match="a bug"):
            await stream.receive()
    assert asyncio.all_tasks() == {asyncio.current_task()}


async def test_a_client_that_does_not_read_makes_the_app_wait() -> None:
    sent = 0
    plain = FastAPI()

    @plain.get("/")
    async def endpoint() -> Response:
        async def stream() -> AsyncIterator[str]:
            nonlocal sent
            while True:
                sent += 1
                yield f"data: {'x' * 10_000}\n\n"

        return StreamingResponse(stream(), media_type="text/event-stream")

    async with events(plain, path="/") as stream:
        for _ in range(1000):
            await asyncio.sleep(0)
        assert sent <= 8
        for _ in range(20):
            await stream.receive()
        assert sent <= 28


EXAMPLES = [
    (b"data: a\n\n", [Event("message", "a", "")]),
    (b"\xef\xbb\xbfdata: a\n\n", [Event("message", "a", "")]),
    (b"data:a\r\ndata: b\r\n\r\n", [Event("message", "a\nb", "")]),
    (b"data:  a\rdata\r\rdata: b\n\n", [Event("message", " a\n", ""), Event("message", "b", "")]),
    (b"id: 1\n\ndata: a\n\nid\ndata: b\n\n", [Event("message", "a", "1"), Event("message", "b", "")]),
    (b": comment\nevent: x\n\ndata: a\n\n", [Event("message", "a", "")]),
    (b"event: x\nother: y\ndata: a\n\ndata: b\n\n", [Event("x", "a", ""), Event("message", "b", "")]),
    (b"data: never complete\n", []),
    (b"id: a\0b\ndata: a\n\n", [Event("message", "a", "")]),
    ("data: ä€\n\n".encode(), [Event("message", "ä€", "")]),
]


@given(example=st.sampled_from(EXAMPLES), data=st.data())
def test_events_are_parsed_as_in_browsers_however_they_are_cut(
    example: tuple[bytes, list[Event]], data: st.DataObject
) -> None:
    text, expected = example
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=5)))
    parser = Parser()
    found = [
        event
        for begin, end in zip([0, *cuts], [*cuts, len(text)], strict=True)
        for event in parser.feed(text[begin:end])
    ]
    assert found == expected


def test_only_digits_are_taken_for_the_time_to_reconnect() -> None:
    parser = Parser("7")
    for value, expected in [("x", None), ("", None), ("15", 15), ("-1", 15), ("²", 15)]:
        parser.feed(f"retry: {value}\n".encode())
        assert parser.retry == expected
    assert parser.feed(b"data: a\n\n") == [Event("message", "a", "7")]
