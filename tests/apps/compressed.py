"""The channels of ``slow``, messages of every kind, and the number of compressed messages."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fastapi import WebSocket

from hubbub.core.compression import deflate
from hubbub.protocols import websocket
from tests.apps import slow
from tests.apps.slow import app, hub

__all__ = ["app"]

compressions = 0


def counted_deflate(data: bytes | bytearray | memoryview) -> bytes | None:
    global compressions
    compressions += 1
    return deflate(data)


websocket.deflate = counted_deflate  # type: ignore[attr-defined]

MAKE: dict[str, Callable[[str], Any]] = {
    "text": str,
    "binary": str.encode,
    "hex": bytes.fromhex,
    "json": lambda text: {"said": text},
}


@app.get("/compressions")
async def count() -> dict[str, int]:
    return {"compressions": compressions, "resident_kib": slow.resident_kib()}


@app.websocket("/rooms/{kind}")
async def room(websocket: WebSocket, kind: str) -> None:
    """Send each message back as ``kind``, and publish it too."""
    async with hub.connection(websocket) as client:
        await client.subscribe("room")
        await client.send_text("ready")
        async for text in client.iter_text():
            data = MAKE[kind](text)
            await client.send(data)
            await hub.publish("room", data, exclude=client)


@app.websocket("/without-the-hub")
async def without_the_hub(websocket: WebSocket) -> None:
    await websocket.accept()
    async for text in websocket.iter_text():
        await websocket.send_text(text)
        await websocket.send_bytes(text.encode())
