"""The demo: rooms to chat in. Run: hubbub demo

A room is a channel with a history and with presence, and nothing else: this process keeps nothing, so there
may be several, and any of them may be killed. The page is ``chat.html``.
"""

from __future__ import annotations

import os
import re
import sys
from datetime import UTC, datetime
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Annotated, Literal, TypeAlias

from fastapi import FastAPI, Query, WebSocket
from fastapi.responses import HTMLResponse
from pydantic import AfterValidator, BaseModel, Field, StringConstraints, TypeAdapter
from pydantic_core import PydanticCustomError

from hubbub import History, Hub

#: Where the rooms are; ``hubbub demo`` sets it.
URL = os.environ.get("HUBBUB_DEMO_URL", "memory://")
#: The names that it answers to; likewise.
HOSTS = os.environ.get("HUBBUB_DEMO_HOSTS", "").split() or None
#: Messages that somebody who comes for the first time gets.
RECENT = 50

# Control characters and line breaks, and what turns the direction of the text behind it.
UNFIT = re.compile("[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069]")


def fit_to_show(text: str) -> str:
    if UNFIT.search(text) or not any(char.isprintable() for char in text):
        raise PydanticCustomError("unfit", "Only characters that can be seen, please.")
    return text


Name: TypeAlias = Annotated[
    str,
    StringConstraints(strip_whitespace=True, min_length=1, max_length=24),
    AfterValidator(fit_to_show),
    Query(),
]
RoomName: TypeAlias = Annotated[
    str,
    StringConstraints(strip_whitespace=True, min_length=1, max_length=40),
    AfterValidator(fit_to_show),
    Query(),
]


# Where a page that comes back left off: the id of the last message.
Since: TypeAlias = Annotated[str, Query(pattern=r"^[0-9]{1,15}:[0-9A-Za-z-]{1,40}$")]

# The parts of a channel's name are divided by these.
IN_CHANNEL = str.maketrans({":": "%3A", "/": "%2F", "%": "%25"})


# What a page sends. Its own id for a message lets it send that again after a lost connection: a message
# that is known already is not said twice.


class Say(BaseModel):
    type: Literal["say"] = "say"
    id: Annotated[str, Field(pattern=r"^[0-9a-f]{16,32}$")]
    text: Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=2000)]


class Typing(BaseModel):
    type: Literal["typing"] = "typing"


FromPage: TypeAdapter[Say | Typing] = TypeAdapter(Annotated[Say | Typing, Field(discriminator="type")])


# What a page is sent. Messages of a room come in envelopes, each with its id. The hub itself sends who is
# present, who joins and who leaves.


class Said(BaseModel):
    type: Literal["said"] = "said"
    id: str
    name: str
    text: str
    at: datetime


class Accepted(BaseModel):
    """The page's own message is in the room, also if it was already."""

    type: Literal["accepted"] = "accepted"
    id: str
    at: datetime


class IsTyping(BaseModel):
    type: Literal["is_typing"] = "is_typing"
    name: str


class Welcome(BaseModel):
    """All that the page has missed has been sent."""

    type: Literal["welcome"] = "welcome"
    name: str
    #: The process that serves it.
    process: int


hub = Hub(URL, presence_ttl=10, hosts=HOSTS)
hub.channel("room:{name}", history=History(size=500, ttl=7 * 86400), presence=True)
app = FastAPI(title="Hubbub demo", openapi_url=None)
app.include_router(hub.router)


@app.websocket("/chat")
async def chat(websocket: WebSocket, room: RoomName, name: Name, since: Since | None = None) -> None:
    channel, typing = f"room:{room.translate(IN_CHANNEL)}", f"typing:{room}"
    async with hub.connection(websocket, user=name) as client:
        await client.subscribe(channel, since=since, history=RECENT, positions=True, join_leave="users")
        await client.subscribe(typing)
        await client.send(Welcome(name=name, process=os.getpid()))
        async for message in client.iter_messages(FromPage):
            match message:
                case Typing():
                    await hub.publish(typing, IsTyping(name=name), exclude=client)
                case Say(id=id, text=text):
                    said = Said(id=id, name=name, text=text, at=datetime.now(UTC))
                    await hub.publish(channel, said, idempotency_key=f"{name} {id}")
                    await client.send(Accepted(id=id, at=said.at))


@app.get("/chat", status_code=204)
async def may_come_in(room: RoomName, name: Name) -> None:
    """Tells a page why its socket was refused, which browsers keep to themselves."""


def examples_folder() -> Path:
    """Inside of this package where it is installed, beside the package in a checkout."""
    package = Path(__file__).resolve().parent
    folders = [package / "examples", package.parents[1] / "examples"]
    for folder in folders:
        if (folder / "chat.py").is_file():
            return folder
    raise FileNotFoundError(f"Expected the examples in one of {', '.join(map(str, folders))}.")


def load_example(name: str) -> ModuleType:
    spec = spec_from_file_location(f"hubbub.demo.examples.{name}", examples_folder() / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[spec.name] = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


for example in ("echo", "items", "manager", "chat"):
    module = load_example(example)
    app.mount(f"/examples/{example}", module.app)
    if example == "chat":
        # Its hub would be one process's own. The lifespan of a mounted app does not run, so it starts and
        # stops with this one.
        example_hub = vars(module)["hub"] = Hub(URL, namespace="example", hosts=HOSTS)
        app.include_router(example_hub.router, prefix="/examples/chat")

LINES = len(Path(__file__).read_text(encoding="utf-8").splitlines())
PAGE = Path(__file__).with_name("chat.html").read_text(encoding="utf-8").replace("{lines}", str(LINES))


@app.get("/")
async def page() -> HTMLResponse:
    return HTMLResponse(PAGE)
