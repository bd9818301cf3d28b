"""A program that runs ``uvicorn.Server``.

Usage: programmatic.py PORT
"""

from __future__ import annotations

import asyncio
import sys

import uvicorn

from tests.apps.paths import app


async def main() -> None:
    await uvicorn.Server(uvicorn.Config(app, port=int(sys.argv[1]))).serve()


asyncio.run(main())
