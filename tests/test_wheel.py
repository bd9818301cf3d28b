"""The wheel is complete and holds nothing else: it serves the demo, from any folder."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.clients import http_client
from tests.uvicorn_process import ROOT, serve


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files of the wheel, in the places that an installation gives them."""
    folder = tmp_path_factory.mktemp("wheel")
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)],
        cwd=ROOT,
        check=True,
        capture_output=True,
    )
    (wheel,) = folder.glob("*.whl")
    unpacked = folder / "unpacked"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(unpacked)
    return unpacked


def test_the_wheel_is_typed_and_names_its_extras(unpacked: Path) -> None:
    assert (unpacked / "hubbub" / "py.typed").exists()
    assert (unpacked / "hubbub" / "engines" / "postgres" / "sql" / "functions.sql").exists()
    metadata = next(unpacked.glob("hubbub-*.dist-info/METADATA")).read_text().splitlines()
    extras = {line.partition(": ")[2] for line in metadata if line.startswith("Provides-Extra: ")}
    assert extras == {"all", "metrics", "postgres", "redis"}


def test_the_wheel_holds_the_package_and_nothing_else(unpacked: Path) -> None:
    assert {path.name.partition("-")[0] for path in unpacked.iterdir()} == {"hubbub"}
    package = {
        path.relative_to(ROOT)
        for path in (ROOT / "hubbub").rglob("*")
        if path.is_file() and path.suffix != ".pyc"
    }
    assert {
        path.relative_to(unpacked) for path in (unpacked / "hubbub").rglob("*") if path.is_file()
    } == package


async def test_the_wheel_serves_the_demo(unpacked: Path, tmp_path: Path, log: Path) -> None:
    command = ("python", "-m", "hubbub", "demo", "--port", "{port}")
    # From a folder without a checkout, and with the unpacked wheel before anything else on the path.
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    env = {"PYTHONPATH": str(unpacked), "HUBBUB_URL": "memory://"}
    async with (
        serve("", log, command=command, cwd=elsewhere, env=env) as server,
        http_client(base_url=server.http) as http,
    ):
        assert "<title>" in (await http.get("/")).text
        assert (await http.get("/examples/chat/")).status_code == 404
