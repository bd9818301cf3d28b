"""A chat server that commits one fault, to one of its clients.

Usage: misbehaving.py PORT FAULT
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator
from http import HTTPStatus

from websockets.asyncio.server import ServerConnection, serve
from websockets.http11 import Request, Response

PORT, FAULT = int(sys.argv[1]), sys.argv[2]

#: The number of the message at which it happens.
WHEN = 5

clients: list[ServerConnection] = []


async def mistake(number: int, text: str) -> AsyncIterator[str]:
    """Yield the texts for the first client in place of ``text``, the message ``number``."""
    match FAULT:
        case "drops" if number == WHEN:
            pass
        case "doubles" if number == WHEN:
            yield text
            yield text
        case "swaps" if number == WHEN:
            held.append(text)
        case "invents" if number == WHEN:
            yield "bench:9999999999"
            yield text
        case "closes" if number == WHEN:
            await clients[0].close(1011)
        case _:
            yield text
            while held:
                yield held.pop()


held: list[str] = []


async def chat(client: ServerConnection) -> None:
    clients.append(client)
    number = 0
    async for text in client:
        assert isinstance(text, str)
        if FAULT == "fragments":
            await client.send(text[:20])
            await client.send([text[:20], text[20:]])
            continue
        async for each in mistake(number, text):
            await clients[0].send(each)
        for other in clients[1:]:
            await other.send(text)
        number += 1


def refuse(client: ServerConnection, request: Request) -> Response | None:
    return client.respond(HTTPStatus.FORBIDDEN, "No.\n") if FAULT == "refuses" else None


async def main() -> None:
    async with serve(chat, "127.0.0.1", PORT, process_request=refuse, compression=None) as server:
        print(f"It {FAULT}.", flush=True)
        await server.serve_forever()


asyncio.run(main())
