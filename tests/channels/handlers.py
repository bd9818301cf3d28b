"""A hub with handlers, and its clients, for the tests of declared channels."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

from fastapi import FastAPI
from pydantic import BaseModel

from hubbub import Hub


class Say(BaseModel):
    type: Literal["say"] = "say"
    text: str = ""


class Typing(BaseModel):
    type: Literal["typing"] = "typing"


class Said(BaseModel):
    type: Literal["said"] = "said"
    text: str


class Untyped(BaseModel):
    text: str


def app_of(hub: Hub) -> FastAPI:
    app = FastAPI()
    app.include_router(hub.router)
    return app


def noting(log: list[str], name: str) -> Callable[[], Any]:
    """Return a dependency that notes its call."""

    async def note() -> None:
        log.append(name)

    return note
