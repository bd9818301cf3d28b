"""Rooms with a memory: who was away gets what they missed. Run: hubbub run history:app"""

from fastapi import FastAPI, WebSocket

from hubbub import History, Hub, Position, Unrecoverable

hub = Hub()
app = FastAPI()
app.include_router(hub.router)

hub.channel("room:{room_id}", history=History(size=200, ttl=3600))


@app.websocket("/rooms/{room_id}")
async def room(websocket: WebSocket, room_id: str, offset: int | None = None, epoch: str = "") -> None:
    channel = f"room:{room_id}"
    async with hub.connection(websocket) as client:
        if offset is None:
            position = await client.subscribe(channel, history=50)
        else:
            try:
                position = await client.subscribe(channel, since=Position(offset, epoch))
            except Unrecoverable:
                await client.send_json({"type": "reload"})
                position = await client.subscribe(channel, history=50)
        await client.send_json({"type": "position", "offset": position.offset, "epoch": position.epoch})
        async for text in client.iter_text():
            await hub.publish(channel, {"type": "said", "text": text})
