"""A shared drawing board: WebSocket messages validated by pydantic models.

Run: hubbub run board:app
"""

from typing import Annotated, Literal

from fastapi import FastAPI, WebSocket
from pydantic import BaseModel, Field, TypeAdapter

from hubbub import Hub

hub = Hub()
app = FastAPI()
app.include_router(hub.router)


class Line(BaseModel):
    type: Literal["line"]
    points: Annotated[list[tuple[float, float]], Field(min_length=2, max_length=500)]


class Clear(BaseModel):
    type: Literal["clear"]


Action = TypeAdapter[Line | Clear](Annotated[Line | Clear, Field(discriminator="type")])


@app.websocket("/boards/{board_id}")
async def board(websocket: WebSocket, board_id: int) -> None:
    async with hub.connection(websocket) as client:
        await client.subscribe(f"board:{board_id}")
        async for action in client.iter_messages(Action):
            await hub.publish(f"board:{board_id}", action, exclude=client)
