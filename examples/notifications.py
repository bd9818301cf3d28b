"""Notifications for one user, sent from a background task to an authenticated WebSocket.

Run: hubbub run notifications:app
"""

from typing import Annotated

from fastapi import BackgroundTasks, Cookie, Depends, FastAPI, HTTPException, Query, WebSocket

from hubbub import History, Hub

hub = Hub()
hub.channel("user:{name}", history=History(size=50))
app = FastAPI()
app.include_router(hub.router)

SESSIONS = {"token-of-ann": "ann", "token-of-bob": "bob"}  # Replace this with your own lookup.


async def current_user(
    session: Annotated[str | None, Cookie()] = None,  # from browsers
    token: Annotated[str | None, Query()] = None,  # from programs and native apps
) -> str:
    user = SESSIONS.get(session or token or "")
    if user is None:
        raise HTTPException(401, "Not logged in.")
    return user


User = Annotated[str, Depends(current_user)]


@app.websocket("/notifications")
async def notifications(websocket: WebSocket, user: User) -> None:
    async with hub.connection(websocket, user=user) as client:
        await client.subscribe(f"user:{user}", history=10)
        async for _ in client.iter_text():
            pass  # This client only listens. The loop ends when it disconnects.


@app.post("/reports", status_code=202)
async def create_report(user: User, background: BackgroundTasks) -> None:
    background.add_task(build_report, user)


async def build_report(user: str) -> None:
    for percent in (0, 50, 100):
        await hub.publish(f"user:{user}", {"report": "sales", "percent": percent})


@app.post("/logout", status_code=204)
async def logout(user: User) -> None:
    await hub.disconnect(user=user, code=4001, reason="logged out")
