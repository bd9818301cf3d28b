"""The direct path under any uvicorn, without a command line option.

``uvicorn app:app``, ``fastapi run`` and ``fastapi dev``, gunicorn's worker for uvicorn, and
``uvicorn.Server`` in a program all read the class of the WebSocket protocol from their ``Config`` when a
client connects. When a hub starts, no client has connected yet. The hub finds that ``Config`` and sets the
class to :class:`~hubbub.servers.uvicorn.AdoptedProtocol`, unless the user has chosen one.

uvicorn gives its application neither ``Config`` nor ``Server``, so the hub looks for them in the running
coroutines: usually it starts in the lifespan, which is one of uvicorn's tasks. A hub that is started
elsewhere finds them through the first WebSocket it is given; that WebSocket itself stays on the queued path.

If anything is not as expected, the protocol is left as it is, and one line in the log says why. Two more
things are changed on the server: its shutdown calls :meth:`hubbub.servers.stopping.Stopping.begin`, and if it
would wait for handlers without a limit, it waits ``DRAIN_SECONDS``.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Iterator
from types import FrameType
from typing import TYPE_CHECKING, Any

from starlette.websockets import WebSocket

from hubbub.servers.limits import DRAIN_SHARE
from hubbub.servers.middleware import unwrap
from hubbub.servers.send_path import log_direct, log_queued
from hubbub.servers.stopping import Stopping

if TYPE_CHECKING:
    from uvicorn import Config, Server

#: Seconds that connections and handlers may take to end at shutdown, unless uvicorn has a setting for it. The
#: default of ``hubbub run`` is the same.
DRAIN_SECONDS = 10


def adopt_server(stopping: Stopping) -> bool:
    """Adopt the uvicorn in whose lifespan this is called.

    :param stopping: begun when the server begins to stop.
    :return: whether the caller runs in uvicorn's lifespan.
    """
    try:
        task = asyncio.current_task()
        return task is not None and _is_loaded() and _adopt(_config_in(task), stopping)
    except Exception as exc:
        _log_unexpected(exc)
        return False


def adopt_server_of(websocket: WebSocket, stopping: Stopping) -> None:
    """Adopt the uvicorn that ``websocket`` comes from, for all later WebSockets.

    :param websocket: the first WebSocket that the hub is given.
    :param stopping: begun when the server begins to stop.
    """
    try:
        receive = unwrap(getattr(websocket, "_receive", None), "receive")
        config = getattr(getattr(receive, "__self__", None), "config", None)
        if not (_is_loaded() and _adopt(config, stopping)):
            log_queued("neither uvicorn's lifespan nor its protocol was found")
    except Exception as exc:
        _log_unexpected(exc)


def _log_unexpected(exc: Exception) -> None:
    log_queued(f"this version of uvicorn is not as expected ({exc!r})")


def _is_loaded() -> bool:
    # Importing uvicorn is slow, and useless under another server.
    return "uvicorn.server" in sys.modules


def _adopt(config: Any, stopping: Stopping) -> bool:
    from uvicorn import Config

    if not isinstance(config, Config):
        return False
    _watch_shutdown(config, stopping)
    if config.timeout_graceful_shutdown is None:
        config.timeout_graceful_shutdown = DRAIN_SECONDS
    reason = _replace_protocol(config)
    if reason:
        log_queued(reason)
    else:
        log_direct()
    return True


def _replace_protocol(config: Config) -> str:
    """Set our protocol in ``config``. Returns the reason if that is impossible, else an empty string."""
    from hubbub.servers.uvicorn import AdoptedProtocol, HubProtocol, missing

    current = config.ws_protocol_class
    if isinstance(current, type) and issubclass(current, HubProtocol):
        return ""
    if config.ws != "auto":
        chosen = config.ws if isinstance(config.ws, str) else config.ws.__name__
        return f"uvicorn was started with --ws {chosen}"
    if current is not HubProtocol.__base__:
        return f"uvicorn's protocol is {getattr(current, '__name__', current)}"
    if names := missing(config):
        return f"the installed uvicorn or websockets has no {', '.join(names)}"
    config.ws_protocol_class = AdoptedProtocol
    return ""


def _watch_shutdown(config: Config, stopping: Stopping) -> None:
    """Begin ``stopping`` when the server of ``config`` begins to stop."""
    from uvicorn import Server

    for task in asyncio.all_tasks():
        for owner in _owners(task):
            if isinstance(owner, Server) and owner.config is config:
                _wrap_shutdown(owner, stopping)
                return


def _wrap_shutdown(server: Server, stopping: Stopping) -> None:
    shutdown = server.shutdown

    async def begin_and_shut_down(*args: Any, **kwargs: Any) -> None:
        stopping.begin((server.config.timeout_graceful_shutdown or 0) * DRAIN_SHARE)
        await shutdown(*args, **kwargs)

    server.shutdown = begin_and_shut_down  # type: ignore[method-assign]


def _config_in(task: asyncio.Task[Any]) -> Any:
    from uvicorn.lifespan.on import LifespanOn

    for owner in _owners(task):
        if isinstance(owner, LifespanOn):
            return owner.config
    return None


def _owners(task: asyncio.Task[Any]) -> Iterator[object]:
    """Yield the objects whose methods are the coroutines of ``task``, from the outermost to the innermost."""
    coroutine: Any = task.get_coro()
    while (frame := getattr(coroutine, "cr_frame", None)) is not None:
        assert isinstance(frame, FrameType)
        yield frame.f_locals.get("self")
        coroutine = coroutine.cr_await
