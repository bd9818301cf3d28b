"""Deployments, announced from wherever they happen. Run: hubbub run deploys:app"""

import os

from fastapi import FastAPI, WebSocket

from hubbub import History, Hub, Publisher

URL = os.environ.get("DEPLOYS_HUB", "sqlite:///deploys.db")

hub = Hub(URL)
hub.channel("deploys", history=History(size=100))
publisher = Publisher(URL)
app = FastAPI()
app.include_router(hub.router)


@app.post("/deploys")
def deploy(version: str) -> int:
    position = publisher.publish("deploys", {"version": version, "status": "planned"})
    return position.offset


@app.websocket("/deploys/live")
async def live(websocket: WebSocket) -> None:
    async with hub.connection(websocket) as client:
        await client.subscribe("deploys", history=10)
        async for _ in client.iter_text():
            pass
