"""Hubbub: a hub with one channel."""

from fastapi import FastAPI, WebSocket

from hubbub import Hub

hub = Hub()
app = FastAPI()
app.include_router(hub.router)


@app.websocket("/ws")
async def bench(websocket: WebSocket) -> None:
    async with hub.connection(websocket) as client:
        await client.subscribe("bench")
        async for text in client.iter_text():
            await hub.publish("bench", text)
