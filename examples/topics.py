"""Several kinds of messages, a snapshot and an rpc method, declared apart from the hub.

Run: hubbub run topics:app
"""

from typing import Annotated, Literal

from fastapi import FastAPI
from pydantic import BaseModel, Field

from hubbub import Channels, Denied, History, Hub

TOPICS: dict[str, str] = {}  # Replace this with your own database.

channels = Channels()  # in a module of its own, as an APIRouter would be
topic = channels.channel("topic:{name}", history=History(size=100))


class Rename(BaseModel):
    type: Literal["rename"] = "rename"
    title: Annotated[str, Field(max_length=80)]


class Typing(BaseModel):
    type: Literal["typing"] = "typing"


class State(BaseModel):
    title: str | None


class Search(BaseModel):
    text: str


@topic.on_publish
async def rename(message: Rename, name: str) -> Rename | None:
    if name == "rules":
        raise Denied("the rules keep their title")
    if TOPICS.get(name) == message.title:
        return None  # Nothing is published.
    TOPICS[name] = message.title
    return message


@topic.on_publish(exclude_sender=True)
async def typing(message: Typing) -> Typing:
    return message


@topic.snapshot
async def state(name: str) -> State:
    return State(title=TOPICS.get(name))


@channels.rpc("topics.search")
async def search(message: Search) -> list[str]:
    return [name for name, title in TOPICS.items() if message.text in title]


hub = Hub()
hub.include(channels)
app = FastAPI()
app.include_router(hub.router)
