"""python-socketio: an ``AsyncServer`` that emits to everyone."""

import socketio

server = socketio.AsyncServer(async_mode="asgi")
app = socketio.ASGIApp(server)


@server.event
async def bench(sid: str, text: str) -> None:
    await server.emit("bench", text)
