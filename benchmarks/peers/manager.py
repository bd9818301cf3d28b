"""FastAPI's documentation: a ``ConnectionManager`` that sends to one socket after another."""

from collections import defaultdict

from fastapi import FastAPI, WebSocket, WebSocketDisconnect


class ConnectionManager:
    def __init__(self) -> None:
        self.active_connections: list[WebSocket] = []

    async def connect(self, websocket: WebSocket) -> None:
        await websocket.accept()
        self.active_connections.append(websocket)

    def disconnect(self, websocket: WebSocket) -> None:
        self.active_connections.remove(websocket)

    async def broadcast(self, message: str) -> None:
        for connection in self.active_connections:
            await connection.send_text(message)


manager = ConnectionManager()
app = FastAPI()


@app.websocket("/ws")
async def bench(websocket: WebSocket) -> None:
    await manager.connect(websocket)
    try:
        while True:
            await manager.broadcast(await websocket.receive_text())
    except WebSocketDisconnect:
        manager.disconnect(websocket)


@app.websocket("/echo")
async def echo(websocket: WebSocket) -> None:
    await websocket.accept()
    try:
        while True:
            await websocket.send_text(await websocket.receive_text())
    except WebSocketDisconnect:
        pass


managers: dict[str, ConnectionManager] = defaultdict(ConnectionManager)


@app.websocket("/many/{channel}")
async def many(websocket: WebSocket, channel: str) -> None:
    await managers[channel].connect(websocket)
    try:
        while True:
            text = await websocket.receive_text()
            for each in managers.values():
                await each.broadcast(text)
    except WebSocketDisconnect:
        managers[channel].disconnect(websocket)
