"""The demo: rooms to chat in. Run: hubbub demo

Everything a room is lives in this process, as the hub does on ``memory://``: who is in it, and the last
messages for whoever comes later or comes back. The page is ``chat.html``.
"""

from __future__ import annotations

import re
import sys
from collections import Counter, deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Annotated, Literal, TypeAlias

from fastapi import FastAPI, Query, WebSocket
from fastapi.responses import HTMLResponse
from pydantic import AfterValidator, BaseModel, Field, StringConstraints, TypeAdapter
from pydantic_core import PydanticCustomError

from hubbub import Hub

#: Messages a room keeps for those who come later.
RECENT = 50
#: Rooms that are remembered while nobody is in them.
EMPTY_ROOMS = 100

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


# What a page sends. Its own id for a message lets it send that again after a lost connection: a message
# that is known already is not said twice.


class Say(BaseModel):
    type: Literal["say"] = "say"
    id: Annotated[str, Field(pattern=r"^[0-9a-f]{16,32}$")]
    text: Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=2000)]


class Typing(BaseModel):
    type: Literal["typing"] = "typing"


FromPage: TypeAdapter[Say | Typing] = TypeAdapter(Annotated[Say | Typing, Field(discriminator="type")])


# What a page is sent.


class Said(BaseModel):
    type: Literal["said"] = "said"
    id: str
    name: str
    text: str
    at: datetime


class IsTyping(BaseModel):
    type: Literal["is_typing"] = "is_typing"
    name: str


class Here(BaseModel):
    """Everyone who is in the room now, and who it was that came or left."""

    type: Literal["here"] = "here"
    people: list[str]
    came: str | None = None
    left: str | None = None
    at: datetime


class Welcome(BaseModel):
    type: Literal["welcome"] = "welcome"
    name: str
    recent: list[Said]


@dataclass
class Room:
    # A person is here once, in however many tabs.
    tabs: Counter[str] = field(default_factory=Counter)
    recent: deque[Said] = field(default_factory=lambda: deque(maxlen=RECENT))

    def here(self, *, came: str | None = None, left: str | None = None) -> Here:
        return Here(people=sorted(self.tabs), came=came, left=left, at=datetime.now(UTC))


rooms: dict[str, Room] = {}
hub = Hub()
app = FastAPI(title="Hubbub demo", openapi_url=None)
app.include_router(hub.router)


@asynccontextmanager
async def presence(channel: str, name: str) -> AsyncIterator[Room]:
    """Be here, and tell the room; at the end, however it comes, leave and tell the room."""
    room = rooms.setdefault(channel, Room())
    room.tabs[name] += 1
    try:
        await hub.publish(channel, room.here(came=name if room.tabs[name] == 1 else None))
        yield room
    finally:
        room.tabs[name] -= 1
        if not room.tabs[name]:
            del room.tabs[name]
            forget_rooms(channel)
            await hub.publish(channel, room.here(left=name))


def forget_rooms(left: str) -> None:
    """Keep the rooms that were left last, of those in which nobody is."""
    rooms[left] = rooms.pop(left)
    empty = [channel for channel, room in rooms.items() if not room.tabs]
    for channel in empty[:-EMPTY_ROOMS]:
        del rooms[channel]


@app.websocket("/chat")
async def chat(websocket: WebSocket, room: RoomName, name: Name) -> None:
    channel = f"room:{room}"
    async with hub.connection(websocket, user=name) as client:
        await client.subscribe(channel)
        async with presence(channel, name) as place:
            await client.send(Welcome(name=name, recent=list(place.recent)))
            async for message in client.iter_messages(FromPage):
                match message:
                    case Typing():
                        await hub.publish(channel, IsTyping(name=name), exclude=client)
                    case Say(id=id, text=text):
                        said = next((said for said in place.recent if said.id == id), None)
                        if said is not None:
                            await client.send(said)
                            continue
                        said = Said(id=id, name=name, text=text, at=datetime.now(UTC))
                        place.recent.append(said)
                        await hub.publish(channel, said)


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
        # The lifespan of a mounted app does not run, so its hub starts and stops with this app.
        app.include_router(module.hub.router, prefix="/examples/chat")

LINES = len(Path(__file__).read_text(encoding="utf-8").splitlines())
PAGE = Path(__file__).with_name("chat.html").read_text(encoding="utf-8").replace("{lines}", str(LINES))


@app.get("/")
async def page() -> HTMLResponse:
    return HTMLResponse(PAGE)
