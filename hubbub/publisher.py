"""Publishing without an event loop, from any thread and any process.

A publisher has a thread with an event loop of its own, on which its engine runs. Other threads hand
publications over to it and wait for the answer, so publications of several threads are under way at the same
time.

A process that forks with a thread and open connections leaves both of them unusable in the child. So a
publisher ends its thread and its connections before a fork. Parent and child make new ones when they publish
next.
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

#: Seconds that a thread waits for the engine, at most. Engines have deadlines of their own, which are
#: shorter.
DEADLINE = 30.0

#: Seconds that stopping the engine and its thread may take.
CLOSE_TIMEOUT = 5.0


def shared_engine_for(url: str, namespace: str = "hubbub") -> Engine:
    """Make the engine for ``url``, which must reach hubs in other processes.

    :raises InvalidURL: no engine has the URL's scheme, or the engine stays within this process.
    :raises MissingExtra: the engine needs a package that is not installed.
    """
    engine = engine_for(url, namespace)
    if not engine.across_processes:
        raise InvalidURL(
            "Expected the URL of an engine that reaches other processes, but got "
            f"{url.partition(':')[0]}://, which stays within one: no subscriber would receive anything. "
            "Give the app's Hub() the URL of another engine, such as sqlite:///hub.db, and use it here "
            "too. Within the app's own process, use 'await hub.publish(…)', or 'hub.publish_sync(…)' in "
            "'def' endpoints and other threads."
        )
    return engine


class Publisher:
    """Publishes to the channels of a hub in another process: from a task queue, a script, another app.

    ::

        with Publisher("redis://localhost") as publisher:
            publisher.publish("room:1", {"text": "hello"})

    Or at the top of a module, as in a Celery worker; it is closed when the interpreter exits::

        publisher = Publisher("redis://localhost")

        @celery.task
        def convert(video_id: int) -> None:
            publisher.publish(f"video:{video_id}", {"progress": 1.0}, history=History(size=10))

    It connects when it publishes for the first time, and reconnects as a hub does. Any number of threads may
    use it at the same time. After a fork, parent and child connect again.

    :param url: the URL that is given to ``Hub``.
    :param namespace: the namespace that is given to ``Hub``.
    :raises InvalidURL: no engine has the URL's scheme, or it is ``memory://``, which stays within one
        process.
    :raises MissingExtra: the engine needs a package that is not installed.
    """

    def __init__(self, url: str, *, namespace: str = "hubbub") -> None:
        self._engine = shared_engine_for(url, namespace)
        self._ids = publication_ids()
        # Protects the two attributes below. Held for moments only, while closing, and during a fork.
        self._lock = Lock()
        self._thread: _EngineThread | None = None
        self._is_closed = False
        with _publishers_lock:
            _publishers.add(self)

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
        """Send ``data`` to all subscribers of ``channel``, and wait until the engine has accepted it.

        :param channel: 1 to 255 characters, none of them a control character.
        :param data: ``str`` is sent as text, ``bytes`` as binary, anything else (a pydantic model, a
            dataclass, a dict, a list, a number) as JSON text.
        :param history: the history of the channel. Only needed for a channel that is published to before the
            app that declares it has run for the first time: from then on a channel keeps its history.
        :param idempotency_key: 1 to 255 characters. Of all calls with the same key within five minutes, only
            the first one publishes; as for a task that is retried.
        :param exclude: the id of a connection that does not receive it.
        :return: the position of the message in the channel; see :meth:`hubbub.Hub.publish`.
        :raises InvalidChannel: ``channel`` is not a valid name.
        :raises InvalidData: ``data`` cannot be encoded.
        :raises EngineUnavailable: the engine cannot be reached.
        :raises HubNotRunning: the publisher has been closed.
        :raises TypeError: another parameter is of the wrong type.
        :raises ValueError: ``idempotency_key`` has no valid length.
        :raises RuntimeError: an event loop is running in this thread, and would be blocked.
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
                raise HubNotRunning("Expected an open publisher, but got one that has been closed.")
            if self._thread is None:
                self._thread = _EngineThread(self._engine)
                # For a publisher that is garbage-collected and has not been closed.
                finalize(self, self._thread.begin_end).atexit = False
            publication = Publication(channel, encoded, kind, exclude, id=next(self._ids))
            answer = self._thread.submit(publication, history, idempotency_key)
        try:
            done, _ = futures.wait([answer], DEADLINE)
        except BaseException:
            # Ctrl+C, most likely: no thread waits for the answer any longer.
            answer.cancel()
            raise
        if not done:
            answer.cancel()
            raise EngineUnavailable(
                f"{type(self._engine).__name__} did not answer within {DEADLINE:g} s; cancelled the "
                "publication."
            )
        try:
            return answer.result()
        except futures.CancelledError:
            raise EngineUnavailable(
                f"The publisher was closed before {type(self._engine).__name__} had answered. Whether it "
                "has accepted the message is not known."
            ) from None

    def close(self) -> None:
        """Wait for the publications of other threads, and disconnect. A second call does nothing."""
        with self._lock:
            self._is_closed = True
            self._disconnect()

    # Internal

    def _disconnect(self) -> None:
        """End the thread and its connections. The caller holds the lock, so no new one is made meanwhile."""
        thread, self._thread = self._thread, None
        if thread is not None:
            thread.close()

    def _renew_lock(self) -> None:
        """Replace the lock in the child of a fork: threads of the parent may have waited for it."""
        self._lock = Lock()


class _EngineThread:
    """A thread with an event loop, on which an engine is started with the first publication."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._outstanding: set[futures.Future[Position]] = set()
        # Its own loop: this thread may be about to set one.
        self._runner = asyncio.Runner(loop_factory=asyncio.new_event_loop)
        self._loop = self._runner.get_loop()
        # Used on the loop only
        self._ending = asyncio.Event()
        self._starting: asyncio.Task[None] | None = None
        self._thread = Thread(target=self._run, name="hubbub-publisher", daemon=True)
        self._thread.start()

    def submit(
        self, publication: Publication, history: History | None, idempotency_key: str | None
    ) -> futures.Future[Position]:
        """Begin to publish. Not to be called after :meth:`close`."""
        publishing = self._publish(publication, history, idempotency_key)
        answer = asyncio.run_coroutine_threadsafe(publishing, self._loop)
        self._outstanding.add(answer)
        answer.add_done_callback(self._outstanding.discard)
        return answer

    def close(self) -> None:
        """Wait for the answers to all publications, and end."""
        futures.wait(self._outstanding.copy(), DEADLINE)
        self.begin_end()
        # If the thread does not end in time, it is left behind: it is a daemon.
        self._thread.join(CLOSE_TIMEOUT)
        _wait_until_gone(self._thread)

    def begin_end(self) -> None:
        """Begin to end, without waiting."""
        # The loop is closed if the thread has ended already.
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
            self._starting = self._loop.create_task(self._engine.start(_NullSink()))
        # The start is shared by all publications that wait for it: cancelling one of them does not cancel it.
        await asyncio.shield(self._starting)
        return await self._engine.publish(publication, history, idempotency_key)


def _wait_until_gone(thread: Thread) -> None:
    """Wait until the system has ended ``thread``, which Python has ended already.

    In between, OpenSSL frees its data of the thread, and holds a lock. In a child that is forked in that
    moment, the lock would be held for ever. Systems without ``/proc`` go without this.
    """
    deadline = time.monotonic() + CLOSE_TIMEOUT
    while os.path.exists(f"/proc/self/task/{thread.native_id}") and time.monotonic() < deadline:
        time.sleep(0.0005)


class _NullSink:
    """The sink of an engine without subscriptions."""

    def on_publication(self, publication: Publication) -> None:
        pass

    def on_disconnect(self, reason: str) -> None:
        pass

    def on_reconnect(self) -> None:
        pass


# Forks, and the exit of the interpreter

_publishers: WeakSet[Publisher] = WeakSet()

# Held from before a fork until after it, together with the locks of all publishers.
_publishers_lock = Lock()
_locked: list[Publisher] = []


def _before_fork() -> None:
    _publishers_lock.acquire()
    for publisher in list(_publishers):
        publisher._lock.acquire()
        _locked.append(publisher)
        publisher._disconnect()


def _after_fork_in_parent() -> None:
    while _locked:
        _locked.pop()._lock.release()
    _publishers_lock.release()


def _after_fork_in_child() -> None:
    global _publishers_lock
    while _locked:
        _locked.pop()._renew_lock()
    _publishers_lock = Lock()


def _at_exit() -> None:
    with _publishers_lock:
        publishers = list(_publishers)
    for publisher in publishers:
        publisher.close()


# Windows has no forks.
if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=_before_fork, after_in_parent=_after_fork_in_parent, after_in_child=_after_fork_in_child
    )
atexit.register(_at_exit)
