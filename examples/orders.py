"""Live updates: clients that watch an order receive its newest status.

Run: hubbub run orders:app
"""

from fastapi import FastAPI, WebSocket
from pydantic import BaseModel

from hubbub import Hub

hub = Hub()
app = FastAPI()
app.include_router(hub.router)


class Order(BaseModel):
    status: str


@app.put("/orders/{order_id}")
async def change(order_id: int, order: Order) -> Order:
    await hub.publish(f"order:{order_id}", order)
    return order


@app.websocket("/orders/{order_id}/live")
async def live(websocket: WebSocket, order_id: int) -> None:
    async with hub.connection(websocket, slow_consumer="latest") as client:
        await client.subscribe(f"order:{order_id}")
        async for _ in client.iter_text():
            pass  # This client only listens. The loop ends when it disconnects.
