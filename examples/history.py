"""Rooms with message history: a client that reconnects receives the messages it missed.

Run: hubbub run history:app
"""

from pathlib import Path

from fastapi import FastAPI, WebSocket
from fastapi.responses import FileResponse

from hubbub import History, Hub

hub = Hub()
hub.channel("room:{room_id}", history=History(size=200, ttl=3600))
app = FastAPI()
app.include_router(hub.router)


@app.get("/rooms/{room_id}")
async def page(room_id: str) -> FileResponse:
    return FileResponse(Path(__file__).with_name("history.html"))


@app.websocket("/rooms/{room_id}")
async def room(websocket: WebSocket, room_id: str, since: str | None = None) -> None:
    channel = f"room:{room_id}"
    async with hub.connection(websocket) as client:
        await client.subscribe(channel, since=since, history=50, positions=True)
        async for text in client.iter_text():
            await hub.publish(channel, {"type": "said", "text": text})
