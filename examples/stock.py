from fastapi import FastAPI, WebSocket

from hubbub import History, Hub

hub = Hub()
hub.channel("stock:{article}", history=History(size=1000))

app = FastAPI()
app.include_router(hub.router)

stock: dict[str, int] = {}  # in place of your database


@app.get("/stock/{article}")
async def load(article: str) -> dict[str, str | int]:
    position = await hub.position(f"stock:{article}")  # first the position,
    count = stock.get(article, 0)  # then the state
    return {"since": str(position), "count": count}


@app.post("/stock/{article}")
async def change(article: str, count: int) -> None:
    stock[article] = count
    await hub.publish(f"stock:{article}", {"count": count})


@app.websocket("/stock/{article}")
async def follow(websocket: WebSocket, article: str, since: str) -> None:
    async with hub.connection(websocket) as client:
        await client.subscribe(f"stock:{article}", since=since, positions=True)
        async for _ in client.iter_text():
            pass  # This client only listens. The loop ends when it disconnects.
