"""The servers that the fan-out benchmark compares, how to start each, and what its clients say."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).parent


@dataclass(frozen=True, slots=True)
class Peer:
    """A server with one room: what any member sends in it goes to all members, the sender too.

    :param command: starts it, run in ``HERE`` with the port in the environment as ``PORT``. ``{python}`` is
        the interpreter, ``{port}`` the port, ``{build}`` where compiled programs are. It is up once it
        takes TCP connections on 127.0.0.1.
    :param path: where its WebSocket is.
    :param packages: what it is made of, for the versions in the report: of npm if ``command`` starts with
        ``node``, of Python otherwise.
    :param hello: text frames that a client sends once its WebSocket is open.
    :param ready: a client is a member when a frame that contains this has come; if empty, once it is open.
    :param message: the text frame of a bench message, ``{}`` standing for the payload: letters and digits
        after ``bench:``. Any frame with the payload in it is a delivery.
    :param replies: what to answer to a frame that equals the first: the second.
    :param has_more: whether there are also ``/echo``, which sends back what comes, and ``/many/{}``, a
        channel for each number, where what any member sends goes to all channels.
    :param receipt: what to answer to each delivery, if that is needed: a text in which ``{}`` stands for
        what the delivery has between the first of the pair and the next ``"``.
    """

    name: str
    title: str
    command: tuple[str, ...]
    path: str
    packages: tuple[str, ...]
    hello: tuple[str, ...] = ()
    ready: str = ""
    message: str = "{}"
    replies: tuple[tuple[str, str], ...] = ()
    receipt: tuple[str, str] | None = None
    has_more: bool = False


def _uvicorn(module: str, *options: str) -> tuple[str, ...]:
    serve = ("{python}", "-m", "uvicorn", f"{module}:app", "--port", "{port}", "--log-level", "warning")
    return (*serve, "--no-access-log", "--loop", "uvloop", "--http", "httptools", *options)


_SOCKET_IO_PATH = "/socket.io/?EIO=4&transport=websocket"
_SOCKET_IO_MESSAGE = '42["bench","{}"]'
_SOCKET_IO_PING = ("2", "3")

PEERS = (
    Peer(
        name="reference",
        title="C, epoll (the limit)",
        command=("{build}/reference", "{port}"),
        path="/ws",
        packages=(),
        has_more=True,
    ),
    Peer(
        name="hubbub",
        title="Hubbub, hubbub run",
        command=("{python}", "-m", "hubbub", "run", "hub:app", "--port", "{port}", "--log-level", "warning"),
        path="/ws",
        packages=("hubbub", "uvicorn"),
        has_more=True,
    ),
    Peer(
        name="hubbub-uvicorn",
        title="Hubbub, plain uvicorn",
        command=_uvicorn("hub"),
        path="/ws",
        packages=("hubbub", "uvicorn"),
        has_more=True,
    ),
    Peer(
        name="manager",
        title="FastAPI, ConnectionManager",
        command=_uvicorn("manager"),
        path="/ws",
        packages=("fastapi", "starlette", "uvicorn"),
        has_more=True,
    ),
    Peer(
        name="broadcaster",
        title="broadcaster",
        command=_uvicorn("broadcaster_"),
        path="/ws",
        packages=("broadcaster", "starlette", "uvicorn"),
    ),
    Peer(
        name="litestar",
        title="Litestar channels",
        command=_uvicorn("litestar_channels"),
        path="/ws",
        packages=("litestar", "uvicorn"),
    ),
    Peer(
        name="django",
        title="Django Channels",
        command=_uvicorn("django_channels", "--lifespan", "off"),
        path="/ws",
        packages=("channels", "django", "uvicorn"),
    ),
    Peer(
        name="chanx",
        title="chanx",
        command=_uvicorn("chanx_"),
        path="/ws",
        packages=("chanx", "fast-channels", "fastapi", "uvicorn"),
        message='{"action":"bench","payload":"{}"}',
    ),
    Peer(
        name="websocket-pubsub",
        title="fastapi-websocket-pubsub",
        command=_uvicorn("websocket_pubsub"),
        path="/pubsub",
        packages=("fastapi-websocket-pubsub", "fastapi-websocket-rpc", "fastapi", "uvicorn"),
        hello=('{"request":{"method":"subscribe","arguments":{"topics":["bench"]}}}',),
        ready='"result":true',
        # A publisher is left out unless it gives an id that is not its own. With sync, the server would read
        # nothing from it until all receipts are in, and its own among them never would be.
        message='{"request":{"method":"publish","arguments":'
        '{"topics":["bench"],"data":"{}","sync":false,"notifier_id":"bench"}}}',
        # The server sends to the next member when this one's receipt has come, and waits for it for ever.
        receipt=('"call_id":"', '{"response":{"result":null,"result_type":null,"call_id":"{}"}}'),
    ),
    Peer(
        name="python-socketio",
        title="python-socketio",
        command=_uvicorn("socketio_"),
        path=_SOCKET_IO_PATH,
        packages=("python-socketio", "python-engineio", "uvicorn"),
        hello=("40",),
        ready="40{",
        message=_SOCKET_IO_MESSAGE,
        replies=(_SOCKET_IO_PING,),
    ),
    Peer(
        name="ws",
        title="Node, ws",
        command=("node", "ws.js"),
        path="/",
        packages=("ws",),
    ),
    Peer(
        name="socket.io",
        title="Node, Socket.IO",
        command=("node", "socketio.js"),
        path=_SOCKET_IO_PATH,
        packages=("socket.io", "engine.io"),
        hello=("40",),
        ready="40{",
        message=_SOCKET_IO_MESSAGE,
        replies=(_SOCKET_IO_PING,),
    ),
)
