"""Chat rooms as typed channels: each message gets its own database session, and its result is published.

Run: hubbub run rooms:app
"""

import sqlite3
from collections.abc import Iterator
from typing import Annotated, Literal

from fastapi import Depends, FastAPI, HTTPException
from pydantic import BaseModel, Field

from hubbub import ConnectToken, History, Hub, Identity

USERS = {"token-of-ann": "ann", "token-of-bob": "bob"}  # Replace this with your own lookup.

hub = Hub()
room = hub.channel("room:{room_id}", history=History(size=200, ttl=3600), presence=True)
app = FastAPI()
app.include_router(hub.router)


class Say(BaseModel):
    type: Literal["say"] = "say"
    text: Annotated[str, Field(min_length=1, max_length=2000)]


class Said(BaseModel):
    type: Literal["said"] = "said"
    user: str | None
    text: str


def session() -> Iterator[sqlite3.Connection]:
    db = sqlite3.connect("rooms.db", check_same_thread=False)  # FastAPI may close it in another thread.
    try:
        with db:  # Commits, or rolls back if the handler raises.
            db.execute("CREATE TABLE IF NOT EXISTS messages (room INTEGER, user TEXT, text TEXT)")
            yield db
    finally:
        db.close()


@hub.on_connect
async def connect(token: ConnectToken) -> Identity:
    if token not in USERS:
        raise HTTPException(401, "Not logged in.")
    return Identity(user=USERS[token])


@room.on_subscribe
async def enter(room_id: int, identity: Identity) -> None:
    if room_id == 13 and identity.user != "ann":
        raise HTTPException(403, "not your room")


@room.on_publish
def say(
    message: Say, room_id: int, identity: Identity, db: Annotated[sqlite3.Connection, Depends(session)]
) -> Said:
    db.execute("INSERT INTO messages VALUES (?, ?, ?)", (room_id, identity.user, message.text))
    return Said(user=identity.user, text=message.text)
