"""WebSocket authentication with ``Depends``, ``Cookie`` and ``Query``, as in any route; without a hub.

Run: uvicorn items:app
"""

from pathlib import Path
from typing import Annotated

from fastapi import Cookie, Depends, FastAPI, Query, WebSocket, WebSocketException, status
from fastapi.responses import FileResponse

app = FastAPI()


async def show_proof(
    session: Annotated[str | None, Cookie()] = None,
    token: Annotated[str | None, Query()] = None,
) -> str:
    # This example accepts any value. A real app looks the session or the token up.
    if session:
        return f"cookie {session}"
    if token:
        return f"token {token}"
    raise WebSocketException(status.WS_1008_POLICY_VIOLATION, "Expected a session cookie or a token.")


@app.get("/")
async def page() -> FileResponse:
    return FileResponse(Path(__file__).with_name("items.html"))


@app.websocket("/items/{item}/ws")
async def order(
    websocket: WebSocket, item: str, proof: Annotated[str, Depends(show_proof)], amount: int | None = None
) -> None:
    await websocket.accept()
    async for text in websocket.iter_text():
        wanted = item if amount is None else f"{amount} x {item}"
        await websocket.send_text(f"About {wanted}, asked with the {proof}: {text}")
