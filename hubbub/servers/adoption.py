"""The direct path under any uvicorn, without a flag.

``uvicorn app:app``, ``fastapi run`` and ``fastapi dev``, gunicorn's worker for uvicorn and ``uvicorn.Server``
in a program all read the class of a WebSocket's protocol from their ``Config`` when a client connects. A hub
that starts looks for that ``Config`` and puts :class:`~hubbub.servers.uvicorn.AdoptedProtocol` there, if the
user has not chosen a class: no socket is open yet. uvicorn hands neither ``Config`` nor ``Server`` to its
application, so they are looked for in the coroutines that are running: a hub starts in the lifespan, which is
a task of uvicorn's. Where a hub is started otherwise, the first socket that it is given leads to them; that
socket itself stays on the queued path.

Whatever is not as expected leaves the protocol as it is, and one line in the log says so. Of the server
itself two things are changed: its shutdown tells :class:`~hubbub.servers.stopping.Stopping`, and where it
would wait for handlers without an end, it waits ``DRAIN_SECONDS``.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Iterator
from types import FrameType
from typing import TYPE_CHECKING, Any

from starlette.websockets import WebSocket

from hubbub.servers.middleware import unwrap
from hubbub.servers.send_path import announce
from hubbub.servers.stopping import Stopping

if TYPE_CHECKING:
    from uvicorn import Config, Server

#: Seconds that connections and handlers may take to end at shutdown, where uvicorn is not told: as under
#: ``hubbub run``.
DRAIN_SECONDS = 10

DIRECT = "Direct path: Hubbub writes into the sockets of its clients."
QUEUED = "Queued path: Hubbub writes to its clients through websocket.send, since {}."
UNEXPECTED = QUEUED.format("this uvicorn is not as expected ({!r})")


def adopt_server(stopping: Stopping) -> bool:
    """Adopt the uvicorn in whose lifespan this is called.

    :param stopping: told when it begins to stop.
    :return: whether there is one.
    """
    try:
        task = asyncio.current_task()
        return task is not None and _is_loaded() and _adopt(_config_in(task), stopping)
    except Exception as exc:
        announce(UNEXPECTED.format(exc))
        return False


def adopt_server_of(websocket: WebSocket, stopping: Stopping) -> None:
    """Adopt the uvicorn that ``websocket`` comes from, for those that come after it.

    :param stopping: told when it begins to stop.
    """
    try:
        receive = unwrap(getattr(websocket, "_receive", None), "receive")
        config = getattr(getattr(receive, "__self__", None), "config", None)
        if not (_is_loaded() and _adopt(config, stopping)):
            announce(QUEUED.format("neither uvicorn's lifespan nor its protocol was found"))
    except Exception as exc:
        announce(UNEXPECTED.format(exc))


def _is_loaded() -> bool:
    # Importing uvicorn takes a while, and is of no use under another server.
    return "uvicorn.server" in sys.modules


def _adopt(config: Any, stopping: Stopping) -> bool:
    from uvicorn import Config

    if not isinstance(config, Config):
        return False
    _watch(config, stopping)
    if config.timeout_graceful_shutdown is None:
        config.timeout_graceful_shutdown = DRAIN_SECONDS
    reason = _replace_protocol(config)
    announce(QUEUED.format(reason) if reason else DIRECT)
    return True


def _replace_protocol(config: Config) -> str:
    """Have ``config`` make protocols of ours. Returns why not, if that cannot be."""
    from hubbub.servers.uvicorn import AdoptedProtocol, HubProtocol, missing

    current = config.ws_protocol_class
    if isinstance(current, type) and issubclass(current, HubProtocol):
        return ""
    if config.ws != "auto":
        chosen = config.ws if isinstance(config.ws, str) else config.ws.__name__
        return f"uvicorn was started with --ws {chosen}"
    if current is not HubProtocol.__base__:
        return f"uvicorn's protocol is {getattr(current, '__name__', current)}"
    if lacks := missing(config):
        return f"the installed uvicorn or websockets has no {', '.join(lacks)}"
    config.ws_protocol_class = AdoptedProtocol
    return ""


def _watch(config: Config, stopping: Stopping) -> None:
    """Have ``stopping`` told when the server of ``config`` begins to stop."""
    from uvicorn import Server

    for task in asyncio.all_tasks():
        for owner in _owners(task):
            if isinstance(owner, Server) and owner.config is config:
                _tell(owner, stopping)
                return


def _tell(server: Server, stopping: Stopping) -> None:
    shutdown = server.shutdown

    async def tell_and_shut_down(*args: Any, **kwargs: Any) -> None:
        stopping.begin()
        await shutdown(*args, **kwargs)

    server.shutdown = tell_and_shut_down  # type: ignore[method-assign]


def _config_in(task: asyncio.Task[Any]) -> Any:
    from uvicorn.lifespan.on import LifespanOn

    for owner in _owners(task):
        if isinstance(owner, LifespanOn):
            return owner.config
    return None


def _owners(task: asyncio.Task[Any]) -> Iterator[object]:
    """The objects whose methods are the coroutines that ``task`` is in, from the outside in."""
    coroutine: Any = task.get_coro()
    while (frame := getattr(coroutine, "cr_frame", None)) is not None:
        assert isinstance(frame, FrameType)
        yield frame.f_locals.get("self")
        coroutine = coroutine.cr_await
