"""The examples in the docstrings of public classes run."""

from __future__ import annotations

import ast
import asyncio
import inspect
import re
import textwrap
from pathlib import Path
from types import CodeType, SimpleNamespace
from typing import Annotated, Any, Literal

import fastapi
import jwt
import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from pydantic import BaseModel

import hubbub
from hubbub import History, Hub, Position, Publication

#: Public classes that are used by name: they need an example.
CLASSES = (
    "Channel",
    "ChannelDeclaration",
    "Channels",
    "Connection",
    "Denied",
    "Health",
    "History",
    "Hub",
    "Identity",
    "JWT",
    "Position",
    "Presence",
    "Publisher",
    "Stats",
)


def examples(name: str) -> list[str]:
    """The code behind each ``::`` in the docstring of a public class or of one of its methods."""
    documented: Any = hubbub
    for part in name.split("."):
        documented = getattr(documented, part)
    docstring = inspect.getdoc(documented) or ""
    return [
        textwrap.dedent(block)
        for block in re.findall(r"::\n\n((?:[ ]{4}.*\n|\n)+)", f"{docstring}\n", flags=re.MULTILINE)
    ]


def methods_with_examples() -> list[str]:
    return [
        f"{name}.{method}"
        for name in CLASSES
        for method, _ in inspect.getmembers(getattr(hubbub, name), inspect.isfunction)
        if not method.startswith("_") and examples(f"{name}.{method}")
    ]


def compiled(code: str) -> CodeType:
    found: CodeType = compile(code, "<docstring>", "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT, dont_inherit=True)
    return found


async def execute(code: str, names: dict[str, Any]) -> None:
    result = eval(compiled(code), names)
    if inspect.isawaitable(result):
        await result


class Stage:
    """The names that examples take for granted: a hub, an app that has it, and the public names."""

    def __init__(self) -> None:
        self.hub = Hub()
        self.app = FastAPI()
        self.app.include_router(self.hub.router)
        self.names: dict[str, Any] = {
            **{name: getattr(hubbub, name) for name in hubbub.__all__},
            **{name: getattr(fastapi, name) for name in ("FastAPI", "Response", "WebSocket")},
            "app": self.app,
            "hub": self.hub,
        }

    def define(self, name: str) -> None:
        """Run the example of ``name``, which awaits nothing."""
        (code,) = examples(name)
        exec(compiled(code), self.names)

    async def run(self, name: str) -> None:
        """Run the example of ``name`` on the hub, which has "room:5"."""
        self.hub.channel("room:{room_id}", history=History(), presence=True)
        (code,) = examples(name)
        async with self.hub:
            await execute(code, self.names)

    def client(self) -> TestClient:
        return TestClient(self.names["app"])


def echoes(stage: Stage, path: str) -> None:
    with stage.client() as client, client.websocket_connect(path) as socket:
        socket.send_text("hello")
        assert socket.receive_text() == "hello"


@pytest.mark.parametrize("name", CLASSES)
def test_each_class_has_an_example(name: str) -> None:
    assert examples(name)


def test_every_method_with_an_example_is_run_here() -> None:
    assert methods_with_examples() == ["Hub.publish_sync", "Hub.rpc"]


def test_hub() -> None:
    stage = Stage()
    stage.define("Hub")
    echoes(stage, "/chat")


def test_connection() -> None:
    stage = Stage()
    stage.define("Connection")
    echoes(stage, "/rooms/5")


def test_jwt() -> None:
    stage = Stage()
    stage.define("JWT")
    secret = re.findall(r'JWT\("(.*?)"', examples("JWT")[0])[0]
    token = jwt.encode({"sub": "ann"}, secret, "HS256")
    with stage.client() as client:
        assert client.get("/me", headers={"Authorization": f"Bearer {token}"}).json() == "ann"
        assert client.get("/me").status_code == 401


def test_publish_sync() -> None:
    stage = Stage()
    stage.define("Hub.publish_sync")
    with stage.client() as client:
        assert client.post("/deploys", params={"version": "v1"}).status_code == 200


def test_health() -> None:
    stage = Stage()
    stage.define("Health")
    with stage.client() as client:
        answer = client.get("/health")
    assert (answer.status_code, answer.json()["ok"]) == (200, True)


class Message(BaseModel):
    """Stands for the models of an application."""

    type: Literal["say"] = "say"
    user: str = ""
    text: str = ""
    name: str = ""
    room: str = ""


class Account(BaseModel):
    id: int = 7
    name: str = "ann"
    rooms: list[int] = []


def account() -> Account:
    return Account()


class Rooms:
    """The module ``rooms`` of an application, whose code is a part of the example."""

    def __init__(self, names: dict[str, Any]) -> None:
        self._names = names

    @property
    def channels(self) -> Any:
        return self._names["channels"]


def stage_with_models(*, has_room: bool) -> Stage:
    stage = Stage()
    stage.names |= {
        **{name: getattr(fastapi, name) for name in ("Cookie", "Depends", "HTTPException")},
        **dict.fromkeys(("Say", "Said", "Rename", "Renamed"), Message),
        "Annotated": Annotated,
        "CurrentUser": Annotated[Account, fastapi.Depends(account)],
        "DB": Annotated[Account, fastapi.Depends(account)],
        "require_user": account,
        "rooms": Rooms(stage.names),
    }
    if has_room:
        stage.names["room"] = stage.hub.channel("room:{room_id}")
    return stage


@pytest.mark.parametrize("name", ["Channel", "Denied", "Hub.rpc", "Identity"])
def test_handlers(name: str) -> None:
    stage = stage_with_models(has_room=True)
    stage.define(name)
    with stage.client():
        pass


def test_a_collection() -> None:
    stage = stage_with_models(has_room=False)
    stage.define("Channels")
    with pytest.raises(hubbub.InvalidChannel, match="declared twice"):
        stage.hub.channel("shop:room:{room_id}")


@pytest.mark.parametrize("name", ["ChannelDeclaration", "History"])
def test_declarations(name: str) -> None:
    stage = stage_with_models(has_room=False)
    stage.define(name)
    with pytest.raises(hubbub.InvalidChannel, match="declared twice"):
        stage.hub.channel("room:{room_id}")


async def test_position() -> None:
    stage = Stage()
    await stage.run("Position")
    assert isinstance(stage.names["position"], Position)
    assert stage.names["newer"] == []


@pytest.mark.parametrize(
    ("name", "printed"),
    [
        ("Presence", "0 connections of []\n"),
        ("Stats", "0 connections, 0 bytes waiting for slow clients\n"),
    ],
)
async def test_what_is_printed(name: str, printed: str, capsys: pytest.CaptureFixture[str]) -> None:
    await Stage().run(name)
    assert capsys.readouterr().out == printed


def test_publisher(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'hub.db'}"
    hub = Hub(url)
    hub.channel("room:{room_id}", history=History())
    hub.channel("video:{video_id}", history=History())
    celery = SimpleNamespace(task=lambda function: function)
    names: dict[str, Any] = {"Publisher": hubbub.Publisher, "History": History, "celery": celery}
    script, worker = (re.sub(r'"[a-z]+://[^"]*"', repr(url), code) for code in examples("Publisher"))

    def publish() -> None:
        exec(compiled(script), names)
        exec(compiled(worker), names)
        names["convert"](7)
        names["publisher"].close()

    async def published() -> list[Publication]:
        async with hub:
            # The channel keeps a history from its first publication by a hub that declares it.
            await hub.publish("room:1", "before")
            await asyncio.to_thread(publish)
            return [*await hub.history("room:1"), *await hub.history("video:7")]

    assert [each.channel for each in asyncio.run(published())] == ["room:1", "room:1", "video:7"]
