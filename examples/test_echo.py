"""A test of the app in echo.py, which needs no hub."""

import pytest
from echo import app

from hubbub.testing import connect


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.mark.anyio
async def test_echo() -> None:
    async with connect(app, path="/ws") as client:
        await client.send("hello")
        assert await client.receive() == "The server heard: hello"
