"""Rooms in which users write, for the tests in test_guestbook.py."""

from typing import Annotated, Literal

from fastapi import Depends, FastAPI, Header, HTTPException
from pydantic import BaseModel

from hubbub import ConnectToken, History, Hub, Identity

hub = Hub()
app = FastAPI()
app.include_router(hub.router)


class Say(BaseModel):
    type: Literal["say"] = "say"
    text: str


class Said(BaseModel):
    type: Literal["said"] = "said"
    user: str | None
    text: str


def language(accept_language: Annotated[str, Header()] = "en") -> str:
    return accept_language


@hub.on_connect
async def connect(token: ConnectToken) -> Identity:
    if not token:
        raise HTTPException(401, "log in first")
    user, _, expires_at = token.partition(" ")  # Replace this with JWT(...).
    return Identity(user=user, expires_at=float(expires_at) if expires_at else None)


room = hub.channel("room:{name}", history=History(size=100, ttl=3600), presence=True)


@room.on_subscribe
async def enter(name: str, identity: Identity) -> None:
    if name == "staff" and identity.user != "ann":
        raise HTTPException(403, "staff only")


@room.on_publish
async def say(message: Say, identity: Identity, language: Annotated[str, Depends(language)]) -> Said:
    text = message.text if language == "en" else f"[{language}] {message.text}"
    return Said(user=identity.user, text=text)
