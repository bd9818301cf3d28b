"""A declared channel for clients with JSON Web Tokens."""

from __future__ import annotations

from typing import Annotated

from fastapi import Depends, FastAPI, HTTPException
from pydantic import BaseModel

from hubbub import JWT, Hub, Identity
from tests.security.signing import SECRET

tokens = JWT(SECRET, algorithms=["HS256"])
required = JWT(SECRET, algorithms=["HS256"], required=True)

hub = Hub()
hub.on_connect(tokens)
app = FastAPI()
app.include_router(hub.router)


class Ask(BaseModel):
    """A question about the sender."""


class Answer(BaseModel):
    user: str | None
    info: str | None


room = hub.channel("room:{name}")


@room.on_subscribe
async def enter(name: str, identity: Identity) -> None:
    if name == "members" and identity.user is None:
        raise HTTPException(403, "members only")


@room.on_publish
async def ask(message: Ask, identity: Identity) -> Answer:
    return Answer(user=identity.user, info=identity.info)


@app.get("/")
async def root() -> None:
    """Answer a test that waits for the server."""


@app.get("/me")
async def me(identity: Annotated[Identity, Depends(required)]) -> str | None:
    return identity.user
