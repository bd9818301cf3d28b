"""Metrics for Prometheus, which sends a token."""

import os
from secrets import compare_digest
from typing import Annotated

from fastapi import Depends, FastAPI, HTTPException, WebSocket
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer

from hubbub import Hub

hub = Hub()
app = FastAPI()
app.include_router(hub.router)


def check_token(bearer: Annotated[HTTPAuthorizationCredentials, Depends(HTTPBearer())]) -> None:
    if not compare_digest(bearer.credentials.encode(), os.environ["METRICS_TOKEN"].encode()):
        raise HTTPException(401)


app.include_router(hub.metrics, dependencies=[Depends(check_token)])


@app.websocket("/ws")
async def chat(websocket: WebSocket) -> None:
    async with hub.connection(websocket) as client:
        await client.subscribe("chat")
        async for text in client.iter_text():
            await hub.publish("chat", text)
