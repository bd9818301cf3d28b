"""Presence: the users who are online in a room, across all processes.

Run: hubbub run lobby:app --workers 2
"""

from fastapi import FastAPI, Response, WebSocket

from hubbub import Health, Hub

hub = Hub("sqlite:///lobby.db")
hub.channel("room:{name}", presence=True)
app = FastAPI()
app.include_router(hub.router)


@app.websocket("/rooms/{name}")
async def enter(websocket: WebSocket, name: str, user: str) -> None:  # A real app authenticates the user.
    async with hub.connection(websocket, user=user) as client:
        await client.subscribe(f"room:{name}", info={"colour": "blue"}, join_leave="users")
        async for text in client.iter_text():
            await hub.publish(f"room:{name}", {"type": "said", "user": user, "text": text})


@app.get("/rooms/{name}")
async def online(name: str) -> dict[str, int]:
    presence = await hub.presence(f"room:{name}")
    return {user: len(connections) for user, connections in presence.users.items()}


@app.delete("/users/{user}", status_code=204)
async def disconnect(user: str) -> None:
    await hub.disconnect(user=user, code=4003, reason="removed by a moderator")


@app.get("/health")
async def health(response: Response) -> Health:
    health = await hub.health()
    response.status_code = 200 if health.ok else 503
    return health
