"""An app that fails to start while there is a file at ``HUBBUB_TEST_BROKEN``."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from fastapi import FastAPI


def check() -> None:
    if Path(os.environ["HUBBUB_TEST_BROKEN"]).exists():
        raise ConnectionError("the app's database is unreachable")


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    check()
    yield


app = FastAPI(lifespan=lifespan)


@app.get("/pid")
async def pid() -> int:
    return os.getpid()
