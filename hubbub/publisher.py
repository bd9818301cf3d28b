"""Publishing from code that is not async, in whichever process it runs.

A publisher has a thread with an event loop of its own, and an engine on that. Other threads hand over what is
to be published and wait for the answer. What comes from several of them at a time is on its way together.

A process that forks with a thread and open connections leaves its child with halves of both. So a publisher
that has them gives them up before a fork, and parent and child make new ones when they publish next.
"""

from __future__ import annotations

import asyncio
import atexit
import os
import time
from concurrent import futures
from contextlib import suppress
from threading import Lock, Thread
from types import TracebackType
from typing import Self
from weakref import WeakSet, finalize

from hubbub.core.history import History
from hubbub.core.publication import Position, Publication, check_channel, check_key, encode, publication_ids
from hubbub.engines import Engine, engine_for
from hubbub.exceptions import EngineUnavailable, HubNotRunning, InvalidURL
from hubbub.threads import refuse_event_loop
from hubbub.types import check_utf8

#: Seconds after which an engine that keeps no deadline of its own is not waited for any more.
DEADLINE = 30.0

#: Seconds that saying goodbye may take.
CLOSE = 5.0


def shared_engine_for(url: str, namespace: str = "hubbub") -> Engine:
    """The engine that ``url`` names, if hubs in other processes can be reached with it.

    :raises InvalidURL: the URL names no engine, or one that stays within this process.
    :raises MissingExtra: the engine needs a package that is not installed.
    """
    engine = engine_for(url, namespace)
    if not engine.across_processes:
        raise InvalidURL(
            "Expected the URL of an engine that reaches other processes, but got "
            f"{url.partition(':')[0]}://, which stays within one: nobody would hear. Give the app's Hub() "
            "the URL of another engine, such as sqlite:///hub.db, and use the same here. Within the app's "
            "own process, there is 'await hub.publish(…)', and 'hub.publish_sync(…)' in 'def' endpoints and "
            "other threads."
        )
    return engine


class Publisher:
    """Publishes to the channels of a hub that runs elsewhere: from a task queue, a script, another
    app.

    ::

        with Publisher("redis://localhost") as publisher:
            publisher.publish("room:1", {"text": "hello"})

    It connects when it publishes first, heals its connection as a hub does, and may be used by many threads
    at a time. It may be made at the top of a module and never closed: it is when the interpreter exits. After
    a fork, parent and child connect anew.

    :param url: the one given to ``Hub``.
    :param namespace: likewise.
    :raises InvalidURL: the URL names no engine, or ``memory://``, which stays within one process.
    :raises MissingExtra: the engine needs a package that is not installed.
    """

    def __init__(self, url: str, *, namespace: str = "hubbub") -> None:
        self._engine = shared_engine_for(url, namespace)
        self._ids = publication_ids()
        # Of what follows; held for moments only, and during a fork.
        self._lock = Lock()
        self._line: _Line | None = None
        self._is_closed = False
        with _all_lock:
            _all.add(self)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def publish(
        self,
        channel: str,
        data: object,
        *,
        history: History | None = None,
        idempotency_key: str | None = None,
        exclude: str | None = None,
    ) -> Position:
        """Send ``data`` to everyone in ``channel``, and wait until the engine has accepted it.

        :param channel: 1 to 255 characters, none of them a control character.
        :param data: ``str`` goes out as text, ``bytes`` as binary, anything else (a pydantic model, a
            dataclass, a dict, a list, a number) as JSON text.
        :param history: what the channel keeps from now on. Only needed where it is published to before the
            app that declares it has been: a channel that has a history keeps it.
        :param idempotency_key: publish it once only, however often this is called with the same key within
            five minutes, as a task may be that is tried again. 1 to 255 characters.
        :param exclude: the id of a connection that is not to get it.
        :return: where the message stands in the channel; see :meth:`hubbub.Hub.publish`.
        :raises InvalidChannel: not a name a channel can have.
        :raises InvalidData: ``data`` cannot be encoded.
        :raises EngineUnavailable: the engine cannot be reached.
        :raises HubNotRunning: the publisher has been closed.
        :raises TypeError: another parameter is of the wrong type.
        :raises ValueError: ``idempotency_key`` is not one.
        :raises RuntimeError: an event loop is running in this thread, which would have to wait.
        """
        kind, encoded = encode(data)
        check_channel(channel)
        check_key(idempotency_key)
        if history is not None and not isinstance(history, History):
            raise TypeError(f"Expected history as History, but got {history!r}.")
        if exclude is not None:
            if not isinstance(exclude, str):
                raise TypeError(
                    f"Expected exclude as the id of a connection, but got {type(exclude).__name__}."
                )
            check_utf8("the id of a connection", exclude)
        refuse_event_loop(
            "Publisher.publish()",
            "'await hub.publish(…)', or 'await asyncio.to_thread(publisher.publish, …)'",
        )
        with self._lock:
            if self._is_closed:
                raise HubNotRunning("Expected an open publisher, but this one has been closed.")
            if self._line is None:
                self._line = _Line(self._engine)
                # For a publisher that nobody has closed, and nobody has any more.
                finalize(self, self._line.end).atexit = False
            publication = Publication(channel, encoded, kind, exclude, id=next(self._ids))
            answer = self._line.submit(publication, history, idempotency_key)
        try:
            done, _ = futures.wait([answer], DEADLINE)
        except BaseException:
            # Ctrl+C, most likely: nobody waits for it any more.
            answer.cancel()
            raise
        if not done:
            answer.cancel()
            raise EngineUnavailable(
                f"Expected {type(self._engine).__name__} to answer within {DEADLINE:g} s, but it did not."
            )
        try:
            return answer.result()
        except futures.CancelledError:
            raise EngineUnavailable(
                f"Expected an answer from {type(self._engine).__name__}, but the publisher was closed."
            ) from None

    def close(self) -> None:
        """Wait for what other threads are publishing, and release everything. It may be closed twice."""
        with self._lock:
            self._is_closed = True
            self._hang_up()

    # Inside

    def _hang_up(self) -> None:
        """Give up the connection. The lock is held, so that nobody makes another one meanwhile."""
        line, self._line = self._line, None
        if line is not None:
            line.close()

    def _after_fork(self) -> None:
        """This is the child."""
        # Other threads of its parent may have waited for the lock.
        self._lock = Lock()


class _Line:
    """A thread with an event loop, and an engine on it that is started when it is needed first."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._outstanding: set[futures.Future[Position]] = set()
        # Not the one of this thread, which may be about to have its own.
        self._runner = asyncio.Runner(loop_factory=asyncio.new_event_loop)
        self._loop = self._runner.get_loop()
        # On the loop
        self._ending = asyncio.Event()
        self._starting: asyncio.Task[None] | None = None
        self._thread = Thread(target=self._run, name="hubbub-publisher", daemon=True)
        self._thread.start()

    def submit(
        self, publication: Publication, history: History | None, idempotency_key: str | None
    ) -> futures.Future[Position]:
        """Publish; not after :meth:`close`."""
        publishing = self._publish(publication, history, idempotency_key)
        answer = asyncio.run_coroutine_threadsafe(publishing, self._loop)
        self._outstanding.add(answer)
        answer.add_done_callback(self._outstanding.discard)
        return answer

    def close(self) -> None:
        """Wait until what was submitted has been answered, and end."""
        futures.wait(self._outstanding.copy(), DEADLINE)
        self.end()
        # If it does not end in time, it is left behind: it is a daemon.
        self._thread.join(CLOSE)
        _wait_until_gone(self._thread)

    def end(self) -> None:
        """Begin to end, without waiting."""
        # It may have ended already.
        with suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._ending.set)

    # On the loop

    def _run(self) -> None:
        with self._runner:
            self._runner.run(self._serve())

    async def _serve(self) -> None:
        await self._ending.wait()
        if self._is_started():
            await self._engine.stop()

    def _is_started(self) -> bool:
        starting = self._starting
        return (
            starting is not None and starting.done() and not starting.cancelled() and not starting.exception()
        )

    async def _publish(
        self, publication: Publication, history: History | None, idempotency_key: str | None
    ) -> Position:
        if self._starting is None or (self._starting.done() and not self._is_started()):
            self._starting = self._loop.create_task(self._engine.start(_Nobody()))
        # Shared by all who wait for it, so that one who gives up does not stop it.
        await asyncio.shield(self._starting)
        return await self._engine.publish(publication, history, idempotency_key)


def _wait_until_gone(thread: Thread) -> None:
    """Python has let go of a thread a moment before the system has, in which OpenSSL tidies up what it keeps
    for each, under a lock. A child that is forked in that moment finds the lock taken for ever."""
    deadline = time.monotonic() + CLOSE
    # Systems without such files have to do without.
    while os.path.exists(f"/proc/self/task/{thread.native_id}") and time.monotonic() < deadline:
        time.sleep(0.0005)


class _Nobody:
    """The sink of an engine that is subscribed to nothing."""

    def on_publication(self, publication: Publication) -> None:
        pass

    def on_disconnect(self, reason: str) -> None:
        pass

    def on_reconnect(self) -> None:
        pass


# Forks, and the end

_all: WeakSet[Publisher] = WeakSet()

# Held from before a fork until after it, together with the locks of all publishers.
_all_lock = Lock()
_held: list[Publisher] = []


def _before_fork() -> None:
    _all_lock.acquire()
    for publisher in list(_all):
        publisher._lock.acquire()
        _held.append(publisher)
        publisher._hang_up()


def _after_fork_in_parent() -> None:
    while _held:
        _held.pop()._lock.release()
    _all_lock.release()


def _after_fork_in_child() -> None:
    global _all_lock
    while _held:
        _held.pop()._after_fork()
    _all_lock = Lock()


def _at_exit() -> None:
    with _all_lock:
        publishers = list(_all)
    for publisher in publishers:
        publisher.close()


# Windows has no forks.
if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=_before_fork, after_in_parent=_after_fork_in_parent, after_in_child=_after_fork_in_child
    )
atexit.register(_at_exit)
