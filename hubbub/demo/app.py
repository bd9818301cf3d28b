"""The demo: chat rooms. Run it with ``hubbub demo``.

Each room is a channel with history and presence. A process keeps no other state: several processes can serve
the same rooms, and any of them may be restarted. The page is ``chat.html``.
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

#: The engine's URL. ``hubbub demo`` sets this variable and the next one.
URL = os.environ.get("HUBBUB_DEMO_URL", "memory://")
#: The host names that the demo answers to.
HOSTS = os.environ.get("HUBBUB_DEMO_HOSTS", "").split() or None
#: Number of recent messages that a new page receives.
RECENT = 50
#: The rate limit of a connection: messages at once, and messages per second after that.
BURST, RATE = 20, 2

# Invisible letters and marks, which have no Unicode category of their own.
BLANK = re.compile(
    "[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u2800\u3164\ufe00-\ufe0f\uffa0\U000e0100-\U000e01ef]"
)


def clean(text: str) -> str:
    """Normalize a name, so that names which look equal are equal.

    Removes invisible characters (control, format, unassigned) and repeated spaces, and converts different
    encodings of the same character to one.
    """
    visible = "".join(char for char in BLANK.sub("", text) if char.isspace() or category(char)[0] != "C")
    return " ".join(normalize("NFKC", visible).split())


# "#" separates the name of a user from the tag.
Name: TypeAlias = Annotated[
    str,
    StringConstraints(min_length=1, max_length=24, pattern="^[^#]*$"),
    BeforeValidator(clean),
    Query(),
]
RoomName: TypeAlias = Annotated[
    str, StringConstraints(min_length=1, max_length=40), BeforeValidator(clean), Query()
]
# A random secret that each browser generates for itself.
Token: TypeAlias = Annotated[str, Query(pattern=r"^[0-9a-f]{32}$")]
# The id of the last message that a reconnecting page has received.
Since: TypeAlias = Annotated[str, Query(pattern=r"^[0-9]{1,15}:[0-9A-Za-z-]{1,40}$")]

# Escapes the separators of channel names.
IN_CHANNEL = str.maketrans({":": "%3A", "/": "%2F", "%": "%25"})


def identify(name: Name, token: Token) -> str:
    """Return the user: the name, and a tag that distinguishes browsers with the same name.

    Other pages see the tag, which does not reveal the token. In an app with accounts, the account would be
    the user.
    """
    return f"{name}#{sha256(token.encode()).hexdigest()[:8]}"


User: TypeAlias = Annotated[str, Depends(identify)]


# Messages from a page. The page chooses the id of a chat message, so that it can send the message again after
# a lost connection without publishing it twice.


class Say(BaseModel):
    type: Literal["say"] = "say"
    id: Annotated[str, Field(pattern=r"^[0-9a-f]{16,32}$")]
    text: Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=2000)]


class Typing(BaseModel):
    type: Literal["typing"] = "typing"


FromPage: TypeAdapter[Say | Typing] = TypeAdapter(Annotated[Say | Typing, Field(discriminator="type")])


# Messages to a page. Publications are in envelopes, each with its position as "id". The hub itself sends
# presence, joins and leaves.


class Welcome(BaseModel):
    """The first message of each connection."""

    type: Literal["welcome"] = "welcome"
    user: str
    #: The id of the process that serves the connection.
    process: int


class Ready(BaseModel):
    """The page has received all messages that it had missed."""

    type: Literal["ready"] = "ready"


class Said(BaseModel):
    type: Literal["said"] = "said"
    id: str
    user: str
    text: str
    at: datetime


class Accepted(BaseModel):
    """The page's own message is published, now or by an earlier attempt."""

    type: Literal["accepted"] = "accepted"
    id: str
    at: datetime


class TooFast(BaseModel):
    """The page's own message is not published. The page may send it again after ``seconds``."""

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
        # The time at which the messages taken so far are used up, at ``RATE`` messages a second.
        self._used_up_at = 0.0

    def take(self) -> float:
        """Take one message and return 0, or return the seconds to wait until one can be taken."""
        now = time.monotonic()
        used_up_at = max(self._used_up_at, now) + 1 / RATE
        if (seconds := used_up_at - now - BURST / RATE) > 0:
            return seconds
        self._used_up_at = used_up_at
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
    """Validate the parameters over HTTP, since browsers hide the reason why a WebSocket was refused."""


LINES = len(Path(__file__).read_text(encoding="utf-8").splitlines())
PAGE = Path(__file__).with_name("chat.html").read_text(encoding="utf-8").replace("{lines}", str(LINES))


@app.get("/")
async def page() -> HTMLResponse:
    return HTMLResponse(PAGE)
