"""What is installed is complete: the wheel serves the demo, with the examples it links to, from anywhere."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.clients import connect, http_client, receive
from tests.uvicorn_process import ROOT, serve


@pytest.fixture
def unpacked(tmp_path: Path) -> Path:
    """The wheel's content, as an installation would lay it out."""
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)],
        cwd=ROOT,
        check=True,
        capture_output=True,
    )
    (wheel,) = tmp_path.glob("*.whl")
    unpacked = tmp_path / "unpacked"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(unpacked)
    return unpacked


def test_the_wheel_is_typed_and_names_its_extras(unpacked: Path) -> None:
    assert (unpacked / "hubbub" / "py.typed").exists()
    assert (unpacked / "hubbub" / "engines" / "postgres" / "sql" / "functions.sql").exists()
    metadata = next(unpacked.glob("hubbub-*.dist-info/METADATA")).read_text()
    for extra in ("all", "metrics", "nats", "postgres", "protobuf", "redis"):
        assert f"Provides-Extra: {extra}\n" in metadata


async def test_the_wheel_serves_the_demo_and_its_examples(unpacked: Path, log: Path) -> None:
    command = ("python", "-m", "hubbub", "demo", "--port", "{port}")
    # From an empty folder, with the unpacked wheel before anything else on the path.
    nowhere = unpacked.parent / "nowhere"
    nowhere.mkdir()
    async with (
        serve("", log, command=command, cwd=nowhere, env={"PYTHONPATH": str(unpacked)}) as server,
        http_client(base_url=server.http, follow_redirects=True) as http,
    ):
        page = await http.get("/")
        assert "<title>" in page.text
        for example in ("echo", "items", "manager", "chat"):
            assert (await http.get(f"/examples/{example}/")).status_code == 200
        async with connect(f"{server.ws}/examples/chat/ws/1") as client:
            await client.send("hello")
            assert await receive(client) == "You wrote: hello"
