"""Hubbub: a hub with one channel, an echo, and one with many channels."""

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


@app.websocket("/echo")
async def echo(websocket: WebSocket) -> None:
    async with hub.connection(websocket) as client:
        async for text in client.iter_text():
            await client.send_text(text)


channels: set[str] = set()


@app.websocket("/many/{channel}")
async def many(websocket: WebSocket, channel: str) -> None:
    async with hub.connection(websocket) as client:
        await client.subscribe(channel)
        channels.add(channel)
        async for text in client.iter_text():
            for each in channels:
                await hub.publish(each, text)
