"""Tests of the app in guestbook.py."""

from collections.abc import Iterator

import pytest
from guestbook import Said, Say, app, hub, language
from httpx2 import ASGITransport, AsyncClient

from hubbub.testing import Closed, FrozenClock, Refused, connect, events, freeze

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(autouse=True)
def clock() -> Iterator[FrozenClock]:
    with freeze(hub) as clock:  # Each test begins with empty channels.
        yield clock


def login(user: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {user}"}


async def test_a_message_reaches_all_clients_in_the_room() -> None:
    async with (
        connect(app, "room:tea", headers=login("ann")) as ann,
        connect(app, "room:tea", headers=login("bob")) as bob,
    ):
        await ann.send(Say(text="hi"))
        for client in (ann, bob):
            assert await client.receive(Said) == Said(user="ann", text="hi")


async def test_a_stranger_is_refused() -> None:
    with pytest.raises(Refused) as refused:
        async with connect(app, "room:tea"):
            pass
    assert (refused.value.status_code, refused.value.detail) == (401, "log in first")


async def test_a_wrong_message_is_answered_with_an_error() -> None:
    async with connect(app, "room:tea", headers=login("ann")) as ann:
        await ann.send({"type": "say"})
        error = await ann.receive()
        assert (error["code"], error["errors"][0]["loc"]) == (107, ["text"])


async def test_dependencies_are_overridden_as_with_fastapi() -> None:
    app.dependency_overrides[language] = lambda: "fr"
    try:
        async with connect(app, "room:tea", headers=login("ann")) as ann:
            await ann.send(Say(text="salut"))
            assert (await ann.receive(Said)).text == "[fr] salut"
    finally:
        app.dependency_overrides.clear()


async def test_a_page_may_post_and_read_an_event_stream() -> None:
    async with (
        events(app, "room:tea", headers=login("bob")) as stream,
        AsyncClient(transport=ASGITransport(app), base_url="http://testserver") as http,
    ):
        assert (await stream.receive_event()).name == "subscribed"
        answer = await http.post("/channels/room:tea", json={"text": "hi"}, headers=login("ann"))
        assert answer.status_code == 200
        assert await stream.receive(Said) == Said(user="ann", text="hi")


async def test_a_login_expires(clock: FrozenClock) -> None:
    token = f"ann {clock.time() + 60}"
    async with connect(app, "room:tea", query={"token": token}) as ann:
        await clock.advance(50)
        assert (await ann.receive())["type"] == "expiring"
        await clock.advance(20)
        with pytest.raises(Closed) as closed:
            await ann.receive()
    assert closed.value.code == 3005
