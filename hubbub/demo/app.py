"""The demo: rooms to chat in. Run: hubbub demo

A room is a channel with a history and with presence. The process keeps nothing else, so several processes can
serve the same rooms, and each of them may be killed. The page is ``chat.html``.
"""

from __future__ import annotations

import os
import re
import time
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from typing import Annotated, Literal, TypeAlias
from unicodedata import category, normalize

from fastapi import Depends, FastAPI, Query, WebSocket
from fastapi.responses import HTMLResponse
from pydantic import BaseModel, BeforeValidator, Field, StringConstraints, TypeAdapter

from hubbub import History, Hub

#: The engine; ``hubbub demo`` sets it.
URL = os.environ.get("HUBBUB_DEMO_URL", "memory://")
#: The names that it answers to; likewise.
HOSTS = os.environ.get("HUBBUB_DEMO_HOSTS", "").split() or None
#: Number of earlier messages that a new page is sent.
RECENT = 50
#: Messages that a connection may send at once, and messages per second after that.
BURST, RATE = 20, 2

# Letters and marks without a shape, which no category of Unicode names.
BLANK = re.compile(
    "[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u2800\u3164\ufe00-\ufe0f\uffa0\U000e0100-\U000e01ef]"
)


def clean(text: str) -> str:
    """Remove what makes equal names look different, or different names equal.

    These are invisible characters (control, format, unassigned), repeated spaces, and several ways to write
    the same character.
    """
    visible = "".join(char for char in BLANK.sub("", text) if char.isspace() or category(char)[0] != "C")
    return " ".join(normalize("NFKC", visible).split())


# Without "#", which begins a user's tag.
Name: TypeAlias = Annotated[
    str,
    StringConstraints(min_length=1, max_length=24, pattern="^[^#]*$"),
    BeforeValidator(clean),
    Query(),
]
RoomName: TypeAlias = Annotated[
    str, StringConstraints(min_length=1, max_length=40), BeforeValidator(clean), Query()
]
# A secret that each browser makes up for itself.
Token: TypeAlias = Annotated[str, Query(pattern=r"^[0-9a-f]{32}$")]
# The position of a page that comes back: the id of the last message it has.
Since: TypeAlias = Annotated[str, Query(pattern=r"^[0-9]{1,15}:[0-9A-Za-z-]{1,40}$")]

# The parts of a channel's name are divided by these.
IN_CHANNEL = str.maketrans({":": "%3A", "/": "%2F", "%": "%25"})


def identify(name: Name, token: Token) -> str:
    """Return the user: the name, and a tag that tells two browsers with the same name apart.

    Other pages get the tag, which does not reveal the token. In an app with accounts, the account is the
    user.
    """
    return f"{name}#{sha256(token.encode()).hexdigest()[:8]}"


User: TypeAlias = Annotated[str, Depends(identify)]


# What a page sends. The page chooses the id of a message, so that it can send the message again after a lost
# connection: a message that is in the room already is not published twice.


class Say(BaseModel):
    type: Literal["say"] = "say"
    id: Annotated[str, Field(pattern=r"^[0-9a-f]{16,32}$")]
    text: Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=2000)]


class Typing(BaseModel):
    type: Literal["typing"] = "typing"


FromPage: TypeAdapter[Say | Typing] = TypeAdapter(Annotated[Say | Typing, Field(discriminator="type")])


# What a page is sent. Messages come in envelopes, each with its position as id. The hub itself sends
# presence, joins and leaves.


class Welcome(BaseModel):
    """The first message of each connection."""

    type: Literal["welcome"] = "welcome"
    user: str
    #: The id of the process that serves it.
    process: int


class Ready(BaseModel):
    """All messages that the page has missed have been sent."""

    type: Literal["ready"] = "ready"


class Said(BaseModel):
    type: Literal["said"] = "said"
    id: str
    user: str
    text: str
    at: datetime


class Accepted(BaseModel):
    """The page's own message is in the room, also if it was there before."""

    type: Literal["accepted"] = "accepted"
    id: str
    at: datetime


class TooFast(BaseModel):
    """The page's own message was not published; the page may send it again after ``seconds``."""

    type: Literal["too_fast"] = "too_fast"
    id: str
    seconds: float
    message: str = "Too many messages at once. Please wait a moment."


class IsTyping(BaseModel):
    type: Literal["is_typing"] = "is_typing"
    user: str


class Allowance:
    """The rate limit of one connection: ``BURST`` messages at once, then ``RATE`` a second."""

    def __init__(self) -> None:
        # When all messages that were taken are paid for.
        self._paid_at = 0.0

    def take(self) -> float:
        """Take one message and return 0; or take none and return the seconds after which one can be taken."""
        now = time.monotonic()
        paid_at = max(self._paid_at, now) + 1 / RATE
        if (seconds := paid_at - now - BURST / RATE) > 0:
            return seconds
        self._paid_at = paid_at
        return 0


hub = Hub(URL, presence_ttl=10, hosts=HOSTS)
hub.channel("room:{name}", history=History(size=500, ttl=7 * 86400), presence=True)
app = FastAPI(title="Hubbub demo", openapi_url=None)
app.include_router(hub.router)


@app.websocket("/chat")
async def chat(websocket: WebSocket, room: RoomName, user: User, since: Since | None = None) -> None:
    channel, typing = f"room:{room.translate(IN_CHANNEL)}", f"typing:{room}"
    allowance = Allowance()
    async with hub.connection(websocket, user=user) as client:
        await client.send(Welcome(user=user, process=os.getpid()))
        await client.subscribe(channel, since=since, history=RECENT, positions=True, join_leave="users")
        await client.subscribe(typing)
        await client.send(Ready())
        async for message in client.iter_messages(FromPage):
            seconds = allowance.take()
            match message:
                case Typing():
                    if not seconds:
                        await hub.publish(typing, IsTyping(user=user), exclude=client)
                case Say(id=id) if seconds:
                    await client.send(TooFast(id=id, seconds=seconds))
                case Say(id=id, text=text):
                    said = Said(id=id, user=user, text=text, at=datetime.now(UTC))
                    await hub.publish(channel, said, idempotency_key=f"{user} {id}")
                    await client.send(Accepted(id=id, at=said.at))


@app.get("/chat", status_code=204)
async def check(room: RoomName, user: User) -> None:
    """Tell a page why its WebSocket was refused: browsers do not show it to pages."""


LINES = len(Path(__file__).read_text(encoding="utf-8").splitlines())
PAGE = Path(__file__).with_name("chat.html").read_text(encoding="utf-8").replace("{lines}", str(LINES))


@app.get("/")
async def page() -> HTMLResponse:
    return HTMLResponse(PAGE)
