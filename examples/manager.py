"""The WebSocket chat of FastAPI's documentation, without a hub: a list of sockets, in one process.

Run: uvicorn manager:app
"""

from pathlib import Path

from fastapi import FastAPI, WebSocket, WebSocketDisconnect
from fastapi.responses import FileResponse


class ConnectionManager:
    def __init__(self) -> None:
        self.sockets: list[WebSocket] = []

    async def connect(self, websocket: WebSocket) -> None:
        await websocket.accept()
        self.sockets.append(websocket)

    def disconnect(self, websocket: WebSocket) -> None:
        self.sockets.remove(websocket)

    async def broadcast(self, text: str) -> None:
        for websocket in self.sockets:
            await websocket.send_text(text)


manager = ConnectionManager()
app = FastAPI()


@app.get("/")
async def page() -> FileResponse:
    return FileResponse(Path(__file__).with_name("chat.html"))


@app.websocket("/ws/{client_id}")
async def chat(websocket: WebSocket, client_id: int) -> None:
    await manager.connect(websocket)
    try:
        while True:
            text = await websocket.receive_text()
            await websocket.send_text(f"You wrote: {text}")
            await manager.broadcast(f"Client #{client_id} says: {text}")
    except WebSocketDisconnect:
        manager.disconnect(websocket)
        await manager.broadcast(f"Client #{client_id} left the chat")
