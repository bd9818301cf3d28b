"""``hubbub run``, and the command line as a whole."""

from __future__ import annotations

import asyncio
import os
import socket
import ssl
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import httpx2
import pytest
import trustme
from websockets.asyncio.client import unix_connect

from hubbub import __version__
from tests.clients import DEADLINE, connect, eventually, http_client, receive
from tests.uvicorn_process import ROOT, serve

EXAMPLES = ROOT / "examples"
HUBBUB = str(Path(sys.executable).with_name("hubbub"))


def hubbub(*words: str, cwd: Path = EXAMPLES, env: dict[str, str] | None = None) -> tuple[int, str]:
    """Run the command to its end, and return its exit code and its output."""
    done = subprocess.run(
        [HUBBUB, *words],
        cwd=cwd,
        env={**os.environ, "COLUMNS": "200", "NO_COLOR": "1", **(env or {})},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=DEADLINE,
    )
    return done.returncode, done.stdout + done.stderr


def test_version() -> None:
    assert hubbub("--version") == (0, f"hubbub {__version__}\n")


def test_python_m_hubbub_is_hubbub() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "hubbub", "--version"], capture_output=True, text=True, timeout=DEADLINE
    )
    assert done.stdout == f"hubbub {__version__}\n"


@pytest.mark.parametrize("command", [("run",), ("demo",), ("publish",), ("tail",), ("doctor",)])
def test_help_shows_examples(command: Sequence[str]) -> None:
    code, text = hubbub(*command, "--help")
    assert code == 0
    assert "Examples" in text
    assert f"hubbub {command[0]}" in text


def test_every_option_of_run_is_in_its_help() -> None:
    options = (
        "host port workers reload log-level uds ssl-keyfile ssl-certfile forwarded-allow-ips compress "
        "drain-seconds"
    )
    _, text = hubbub("run", "--help")
    for option in options.split(" "):
        assert f"--{option}" in text


@pytest.mark.parametrize(
    ("target", "message"),
    [
        (
            "main",
            "Expected a target such as 'main:app' (module, colon, name of the app in the module), but got",
        ),
        ("main", "Did you mean 'main:app'?"),
        ("shop/main.py:api", "There is no module 'shop/main'"),
        ("shop/main.py", "Did you mean 'shop.main:app'?"),
        ("nothing_here:app", "There is no module 'nothing_here' in "),
        ("shop.nothing:app", "There is no module 'shop.nothing' in "),
        ("shop.main:nothing", "The module 'shop.main' has no 'nothing'. Its apps are: api."),
        ("shop.main:hub", "'shop.main:hub' is the hub. Name the FastAPI app that includes its router."),
        ("shop.main:number", "Expected 'shop.main:number' to be an ASGI application, but it is int."),
        ("empty:app", "The module 'empty' has no 'app'. It has no FastAPI app."),
        ("needy:app", "The module 'needy' needs 'no_such_package', which is not installed."),
        ("broken:app", "The module 'broken' could not be imported: ZeroDivisionError: division by zero"),
        ("broken:app", "broken.py"),
        ("misspelt:app", "The module 'misspelt' could not be imported: SyntaxError"),
    ],
)
def test_a_target_that_cannot_be_imported_is_an_error_that_names_the_fix(
    tmp_path: Path, target: str, message: str
) -> None:
    package = tmp_path / "shop"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "main.py").write_text(
        "from fastapi import FastAPI\nfrom hubbub import Hub\napi = FastAPI()\nhub = Hub()\nnumber = 1\n"
    )
    (tmp_path / "empty.py").touch()
    (tmp_path / "needy.py").write_text("import no_such_package\n")
    (tmp_path / "broken.py").write_text("1 / 0\n")
    (tmp_path / "misspelt.py").write_text("def def\n")
    code, text = hubbub("run", target, cwd=tmp_path)
    assert code == 2
    assert message in text


def test_reload_only_needs_the_module_to_exist() -> None:
    code, text = hubbub("run", "nothing_here:app", "--reload")
    assert code == 2
    assert "There is no module 'nothing_here'" in text


def test_several_workers_need_an_engine_that_reaches_across_processes() -> None:
    for words, env in [(("--workers", "2"), {}), ((), {"WEB_CONCURRENCY": "2"})]:
        code, text = hubbub("run", "chat:app", *words, env=env)
        assert code == 2
        assert "memory://, which reaches only one process" in text
        assert "Give Hub() the URL of an engine that reaches across processes" in text


def test_options_that_exclude_or_need_each_other() -> None:
    assert "--reload uses one process" in hubbub("run", "chat:app", "--reload", "--workers", "2")[1]
    assert "add --ssl-certfile" in hubbub("run", "chat:app", "--ssl-keyfile", "chat.py")[1]
    assert "does not exist" in hubbub("run", "chat:app", "--ssl-certfile", "nowhere.pem")[1]


def test_a_port_in_use_is_an_error() -> None:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        sock.listen()
        code, text = hubbub("run", "chat:app", "--port", str(sock.getsockname()[1]))
    assert code != 0
    assert "address already in use" in text


async def test_several_workers_serve_an_app_without_a_hub(log: Path) -> None:
    async with serve("echo:app", log, args=["--workers", "2"]) as server:
        async with connect(f"{server.ws}/ws") as client:
            await client.send("hello")
            assert "hello" in str(await receive(client))
        await eventually(lambda: server.log.count("Application startup complete") == 2)


async def test_reload_serves_the_changed_app(log: Path, tmp_path: Path) -> None:
    app = tmp_path / "app.py"
    source = "from fastapi import FastAPI\napp = FastAPI()\n@app.get('/')\ndef page():\n    return '{}'\n"
    app.write_text(source.format("before"))
    async with (
        serve("app:app", log, args=["--reload"], cwd=tmp_path) as server,
        http_client() as client,
    ):
        assert (await client.get(server.http)).json() == "before"
        await eventually(lambda: "Started reloader process" in server.log)
        app.write_text(source.format("after"))

        async def changed() -> bool:
            try:
                return bool((await client.get(server.http)).json() == "after")
            except httpx2.TransportError:
                return False

        await eventually(changed)


async def test_a_unix_socket(tmp_path: Path) -> None:
    path = tmp_path / "hub.sock"

    async def listens() -> bool:
        # The file is there from ``bind`` on, before ``listen``.
        try:
            _, writer = await asyncio.open_unix_connection(path)
        except (FileNotFoundError, ConnectionRefusedError):
            return False
        writer.close()
        return True

    process = await asyncio.create_subprocess_exec(
        HUBBUB, "run", "chat:app", "--uds", str(path), cwd=EXAMPLES, stderr=asyncio.subprocess.DEVNULL
    )
    try:
        await eventually(listens)
        async with unix_connect(str(path), uri="ws://localhost/ws/1") as client:
            await client.send("hello")
            assert await receive(client) == "You wrote: hello"
    finally:
        process.terminate()
        await process.wait()


async def test_tls(log: Path, tmp_path: Path) -> None:
    authority = trustme.CA()
    identity = authority.issue_cert("127.0.0.1")
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    identity.private_key_pem.write_to_path(key)
    identity.cert_chain_pems[0].write_to_path(certificate)
    context = ssl.create_default_context()
    authority.configure_trust(context)
    args = ["--ssl-keyfile", str(key), "--ssl-certfile", str(certificate)]
    async with serve("chat:app", log, args=args, probe=None) as server:
        await eventually(lambda: "Uvicorn running on https" in server.log)
        async with connect(f"wss://127.0.0.1:{server.port}/ws/1", ssl=context) as client:
            await client.send("hello")
            assert await receive(client) == "You wrote: hello"


async def test_forwarded_headers_are_trusted_only_from_the_named_proxies(log: Path, tmp_path: Path) -> None:
    (tmp_path / "address.py").write_text(
        "from fastapi import FastAPI, Request\napp = FastAPI()\n"
        "@app.get('/')\ndef address(request: Request):\n    return request.client.host\n"
    )
    headers = {"X-Forwarded-For": "203.0.113.7"}
    for allowed, seen in [("127.0.0.1", "203.0.113.7"), ("192.0.2.1", "127.0.0.1")]:
        args = ["--forwarded-allow-ips", allowed]
        async with serve("address:app", log, args=args, cwd=tmp_path) as server, http_client() as client:
            assert (await client.get(server.http, headers=headers)).json() == seen


async def test_shutdown_cancels_handlers_after_drain_seconds(log: Path, tmp_path: Path) -> None:
    (tmp_path / "stubborn.py").write_text(
        "import asyncio\nfrom fastapi import FastAPI, WebSocket\nfrom hubbub import Hub\n"
        "hub = Hub()\napp = FastAPI()\napp.include_router(hub.router)\n"
        "@app.websocket('/ws')\nasync def ws(websocket: WebSocket):\n"
        "    async with hub.connection(websocket) as client:\n"
        "        await client.send_text('ready')\n        await asyncio.sleep(3600)\n"
    )
    args = ["--drain-seconds", "1"]
    async with serve("stubborn:app", log, args=args, cwd=tmp_path) as server:
        client = await connect(f"{server.ws}/ws")
        assert await receive(client) == "ready"
        await server.stop()
    assert "Application shutdown complete" in server.log
