"""A chat that survives a restart of the server.

Run: hubbub run quickstart:app
"""

from fastapi import FastAPI, WebSocket
from fastapi.responses import FileResponse

from hubbub import History, Hub

hub = Hub("sqlite:///quickstart.db")
hub.channel("chat", history=History(size=100))

app = FastAPI()
app.include_router(hub.router)  # starts and stops the hub with the app


@app.get("/")
async def page() -> FileResponse:
    return FileResponse("quickstart.html")


@app.websocket("/ws")
async def chat(websocket: WebSocket) -> None:
    async with hub.connection(websocket) as client:
        await client.subscribe("chat", history=20)
        async for text in client.iter_text():
            await hub.publish("chat", text)
