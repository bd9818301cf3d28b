"""The servers that are compared, their commands, and the messages of their clients."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).parent

#: Features that a scenario may need. One process with a room:
ROOM = "room"
#: Also ``/echo``, which returns each message, and ``/many/{}``, a channel for each number; a message of any
#: member goes to all channels.
MORE = "more"
#: The room on a server on which Hubbub writes with ``websocket.send`` only.
QUEUED = "queued"
#: One room for all processes with the same store.
WORKERS = "workers"
#: Publishing without a client: a ``publisher``.
PUBLISH = "publish"
#: The room with a history, or its counterpart without one.
HISTORY = "history"
#: ``/resume``, the same room for clients that resume, ``/fill``, which publishes the messages that they have
#: missed, and ``/reads``, which returns how often the history was read.
RESUME = "resume"


@dataclass(frozen=True, slots=True)
class Peer:
    """A server with one room: a message from one member goes to all members, the sender included.

    :param command: starts it, run in ``HERE`` with the port in the environment as ``PORT``. ``{python}`` is
        the interpreter, ``{port}`` the port, ``{build}`` where compiled programs are. It is up once it
        takes TCP connections on 127.0.0.1.
    :param path: the path of its WebSocket.
    :param packages: its parts, for the versions in the report: of npm if ``command`` starts with
        ``node``, of Python otherwise.
    :param hello: text frames that a client sends once its WebSocket is open.
    :param ready: a client has joined when a frame that contains this has come; if empty, once it is open.
    :param message: the text frame of a bench message, ``{}`` standing for the payload: letters and digits
        after ``bench:``. Any frame with the payload in it is a delivery.
    :param replies: pairs of frames: a frame that equals the first is answered with the second.
    :param offers: the features above that it has.
    :param store: connects its processes: ``"sqlite"``, ``"redis"`` or ``"postgres"``. Its URL is in the
        environment as ``STORE``.
    :param store_options: put behind that URL.
    :param environment: other variables of the environment.
    :param publisher: a module in ``HERE`` whose ``publishing()`` is an asynchronous context with a function
        that publishes a text.
    :param receipt: the answer to each delivery, if one is needed: a text in which ``{}`` stands for the part
        of the delivery between the first of the pair and the next ``"``.
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
    offers: frozenset[str] = frozenset({ROOM})
    store: str = ""
    store_options: str = ""
    environment: tuple[tuple[str, str], ...] = ()
    publisher: str = ""

    def settings(self, url: str) -> dict[str, str]:
        """The environment of its processes, for the store at ``url``."""
        return dict(self.environment) | ({"STORE": url + self.store_options} if url else {})


def _uvicorn(module: str, *options: str) -> tuple[str, ...]:
    serve = ("{python}", "-m", "uvicorn", f"{module}:app", "--port", "{port}", "--log-level", "warning")
    return (*serve, "--no-access-log", "--loop", "uvloop", "--http", "httptools", *options)


def _hubbub(app: str) -> tuple[str, ...]:
    return ("{python}", "-m", "hubbub", "run", app, "--port", "{port}", "--log-level", "warning")


_HISTORY_SIZE = "200"


def _hubbubs() -> Iterator[Peer]:
    """Hubbub on each engine, with and without a history."""
    for store, title, packages in (
        ("", "memory", ()),
        ("sqlite", "SQLite", ()),
        ("redis", "Redis", ("redis", "hiredis")),
        ("postgres", "PostgreSQL", ("asyncpg",)),
    ):
        across = {WORKERS, PUBLISH} if store else set()
        for suffix, more, environment in (
            ("", set(), ()),
            ("-history", {RESUME}, (("HISTORY", _HISTORY_SIZE),)),
        ):
            yield Peer(
                name=f"hubbub-{store or 'memory'}{suffix}",
                title=f"Hubbub, {title}{suffix.replace('-', ', ')}",
                command=_hubbub("hub:app"),
                path="/ws",
                packages=("hubbub", "uvicorn", *packages),
                offers=frozenset({HISTORY} | across | more),
                store=store,
                environment=environment,
                publisher="hub" if store else "",
            )


def _on_other_servers() -> Iterator[Peer]:
    """Hubbub and the page's manager on servers that are not uvicorn."""
    for server, command in (
        ("hypercorn", ("hypercorn", "{}:app", "--bind", "127.0.0.1:{port}", "--worker-class", "uvloop")),
        (
            "granian",
            (
                "granian",
                "{}:app",
                "--interface",
                "asgi",
                "--port",
                "{port}",
                "--loop",
                "uvloop",
                "--no-access-log",
            ),
        ),
    ):
        for name, title, module in (
            ("hubbub", "Hubbub", "hub"),
            ("manager", "FastAPI, ConnectionManager", "manager"),
        ):
            yield Peer(
                name=f"{name}-{server}",
                title=f"{title}, {server}",
                command=("{python}", "-m", *(word.replace("{}", module) for word in command)),
                path="/ws",
                packages=("hubbub", "fastapi", server),
                offers=frozenset({QUEUED}),
            )


_ACROSS = frozenset({WORKERS, PUBLISH})
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
        offers=frozenset({ROOM, MORE}),
    ),
    Peer(
        name="hubbub",
        title="Hubbub, hubbub run",
        command=_hubbub("hub:app"),
        path="/ws",
        packages=("hubbub", "uvicorn"),
        offers=frozenset({ROOM, MORE}),
    ),
    Peer(
        name="hubbub-uvicorn",
        title="Hubbub, plain uvicorn",
        command=_uvicorn("hub"),
        path="/ws",
        packages=("hubbub", "uvicorn"),
        offers=frozenset({ROOM, MORE}),
    ),
    Peer(
        name="manager",
        title="FastAPI, ConnectionManager",
        command=_uvicorn("manager"),
        path="/ws",
        packages=("fastapi", "starlette", "uvicorn"),
        offers=frozenset({ROOM, MORE}),
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
    *_on_other_servers(),
    *_hubbubs(),
    Peer(
        name="hubbub-postgres-unsynced",
        title="Hubbub, PostgreSQL, unsynced",
        command=_hubbub("hub:app"),
        path="/ws",
        packages=("hubbub", "asyncpg", "uvicorn"),
        offers=_ACROSS,
        store="postgres",
        store_options="?options=-c%20synchronous_commit=off",
        publisher="hub",
    ),
    Peer(
        name="hubbub-redis-uvicorn",
        title="Hubbub, Redis, plain uvicorn",
        command=_uvicorn("hub"),
        path="/ws",
        packages=("hubbub", "redis", "hiredis", "uvicorn"),
        offers=frozenset({WORKERS}),
        store="redis",
    ),
    Peer(
        name="broadcaster-redis",
        title="broadcaster, Redis",
        command=_uvicorn("broadcaster_"),
        path="/ws",
        packages=("broadcaster", "redis", "hiredis", "starlette", "uvicorn"),
        offers=_ACROSS,
        store="redis",
        publisher="broadcaster_",
    ),
    Peer(
        name="litestar-redis",
        title="Litestar channels, Redis",
        command=_uvicorn("litestar_channels"),
        path="/ws",
        packages=("litestar", "redis", "hiredis", "uvicorn"),
        offers=_ACROSS,
        store="redis",
        publisher="litestar_channels",
    ),
    *(
        Peer(
            name=name,
            title=title,
            command=_uvicorn("django_channels", "--lifespan", "off"),
            path="/ws",
            packages=("channels-redis", "channels", "django", "redis", "hiredis", "uvicorn"),
            offers=_ACROSS,
            store="redis",
            environment=(("LAYER", layer),),
            publisher="django_channels",
        )
        for name, title, layer in (
            ("channels-redis", "channels_redis", "channels_redis.core.RedisChannelLayer"),
            (
                "channels-redis-pubsub",
                "channels_redis, pub/sub",
                "channels_redis.pubsub.RedisPubSubChannelLayer",
            ),
        )
    ),
    Peer(
        name="python-socketio-redis",
        title="python-socketio, Redis",
        command=_uvicorn("socketio_"),
        path=_SOCKET_IO_PATH,
        packages=("python-socketio", "python-engineio", "redis", "hiredis", "uvicorn"),
        hello=("40",),
        ready="40{",
        message=_SOCKET_IO_MESSAGE,
        replies=(_SOCKET_IO_PING,),
        offers=_ACROSS,
        store="redis",
        publisher="socketio_",
    ),
)
