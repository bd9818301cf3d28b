"""The WebSocket chat of FastAPI's documentation, on a hub.

Run: hubbub run chat:app
"""

from pathlib import Path

from fastapi import FastAPI, WebSocket
from fastapi.responses import FileResponse

from hubbub import Hub

hub = Hub()
app = FastAPI()
app.include_router(hub.router)


@app.get("/")
async def page() -> FileResponse:
    return FileResponse(Path(__file__).with_name("chat.html"))


@app.websocket("/ws/{client_id}")
async def chat(websocket: WebSocket, client_id: int) -> None:
    async with hub.connection(websocket) as client:
        await client.subscribe("chat")
        async for text in client.iter_text():
            await client.send_text(f"You wrote: {text}")
            await hub.publish("chat", f"Client #{client_id} says: {text}")
    await hub.publish("chat", f"Client #{client_id} left the chat")
