"""Publish inside a PostgreSQL transaction: orders are announced when they are committed.

Run: SHOP_DATABASE=postgresql://… hubbub run shop:app
"""

import os
from collections.abc import AsyncIterator
from typing import Annotated

from fastapi import Depends, FastAPI, WebSocket
from pydantic import BaseModel
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from hubbub import History, Hub

DATABASE = os.environ.get("SHOP_DATABASE", "postgresql://localhost/shop")

hub = Hub(DATABASE)
hub.channel("orders", history=History(size=1000, ttl=86_400))
app = FastAPI()
app.include_router(hub.router)

engine = create_async_engine(DATABASE.replace("postgresql://", "postgresql+asyncpg://"))
sessions = async_sessionmaker(engine)


class Base(DeclarativeBase):
    pass


class Row(Base):
    __tablename__ = "shop_orders"

    id: Mapped[int] = mapped_column(primary_key=True)
    item: Mapped[str]


class Order(BaseModel):
    item: str


async def session() -> AsyncIterator[AsyncSession]:
    async with engine.begin() as connection:
        await connection.run_sync(Base.metadata.create_all)
    async with sessions() as session:
        yield session


Session = Annotated[AsyncSession, Depends(session)]


@app.post("/orders")
async def create(order: Order, session: Session) -> Order:
    session.add(Row(item=order.item))
    await hub.publish("orders", order, using=session)
    await session.commit()  # Now, and only now, clients receive the order.
    return order


@app.websocket("/orders/live")
async def live(websocket: WebSocket) -> None:
    async with hub.connection(websocket) as client:
        await client.subscribe("orders", history=10)
        async for _ in client.iter_text():
            pass  # This client only listens. The loop ends when it disconnects.
