"""A room whose handlers take a session from a pool of one, over all doors."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from typing import Annotated

from fastapi import Depends, FastAPI, Header, HTTPException, Security
from fastapi.security import OAuth2PasswordBearer, SecurityScopes
from pydantic import BaseModel

from hubbub import History, Hub

hub = Hub(os.environ.get("HUBBUB_URL", "memory://"), max_message_rate=None)
app = FastAPI()
app.include_router(hub.router)
room = hub.channel("room:{room_id}", history=History(size=1000))

pool = asyncio.Semaphore(1)
oauth2 = OAuth2PasswordBearer("login", scopes={"read": "Read", "write": "Write"})


async def session() -> AsyncIterator[int]:
    # A session that stays open would keep all others waiting.
    async with asyncio.timeout(20), pool:
        await asyncio.sleep(0)
        yield os.getpid()


def user(scopes: SecurityScopes, token: Annotated[str, Security(oauth2)]) -> str:
    name, _, granted = token.partition(" ")
    if not set(scopes.scopes) <= set(granted.split("+")):
        raise HTTPException(403, "not enough permissions")
    return name


DB = Annotated[int, Depends(session)]


class Say(BaseModel):
    text: str


class Said(BaseModel):
    user: str
    room: int
    text: str
    page: str


@room.on_subscribe
async def enter(
    room_id: int,
    page: Annotated[str, Header()],
    user: Annotated[str, Security(user, scopes=["read"])],
    db: DB,
) -> None: ...


@room.on_publish
async def say(
    message: Say,
    room_id: int,
    page: Annotated[str, Header()],
    user: Annotated[str, Security(user, scopes=["write"])],
    db: DB,
) -> Said:
    return Said(user=user, room=room_id, text=message.text, page=page)


@app.get("/")
async def process() -> int:
    return os.getpid()
