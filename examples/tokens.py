"""A chat whose clients have JSON Web Tokens (JWT), which are renewed while the socket stays open.

Run: CHAT_SECRET=$(openssl rand -hex 32) hubbub run tokens:app
"""

import os
import time
from pathlib import Path
from typing import Annotated, Literal

import jwt
from fastapi import Depends, FastAPI, HTTPException
from fastapi.responses import FileResponse
from pydantic import BaseModel

from hubbub import JWT, Hub, Identity

SECRET = os.environ["CHAT_SECRET"]  # the same in all processes
SECONDS = int(os.environ.get("CHAT_TOKEN_SECONDS", "600"))
PASSWORDS = {"ann": "teapot", "bob": "lantern"}  # Replace this with your own lookup.

tokens = JWT(SECRET, algorithms=["HS256"], required=True)

hub = Hub()
hub.on_connect(tokens)  # every client of a declared channel is identified by its token
room = hub.channel("room:{room_id}")
app = FastAPI()
app.include_router(hub.router)


class Say(BaseModel):
    type: Literal["say"] = "say"
    text: str


class Said(BaseModel):
    type: Literal["said"] = "said"
    user: str | None
    text: str


@room.on_publish
async def say(message: Say, identity: Identity) -> Said:
    return Said(user=identity.user, text=message.text)


class Login(BaseModel):
    name: str
    password: str


@app.post("/login")
async def login(form: Login) -> str:
    if PASSWORDS.get(form.name) != form.password:
        raise HTTPException(401, "wrong name or password")
    return make_token(form.name)


@app.post("/renew")
async def renew(identity: Annotated[Identity, Depends(tokens)]) -> str:
    return make_token(identity.user)


def make_token(user: str | None) -> str:
    return jwt.encode({"sub": user, "exp": time.time() + SECONDS}, SECRET, "HS256")


@app.get("/")
async def page() -> FileResponse:
    return FileResponse(Path(__file__).with_name("tokens.html"))
