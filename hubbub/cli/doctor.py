"""``hubbub doctor``: check whether an engine can be reached and used, and is set up well.

Two engines are started on the URL: one publishes and the other one subscribes, as two processes of an app
would.
"""

from __future__ import annotations

import asyncio
import logging
import re
import time
from collections.abc import AsyncIterator, Awaitable
from contextlib import suppress
from secrets import token_hex
from typing import TypeVar

import typer

from hubbub.cli.advice import advise
from hubbub.cli.arguments import URL, Namespace
from hubbub.cli.failures import FAILURE
from hubbub.core.history import History
from hubbub.core.publication import START, Position, Publication, publication_ids
from hubbub.engines.base import Engine, PresenceChange
from hubbub.engines.diagnostics import Diagnosis
from hubbub.exceptions import EngineUnavailable, HubbubError
from hubbub.publisher import shared_engine_for

T = TypeVar("T")

#: Seconds that one step may take. Engines have shorter timeouts of their own.
STEP_TIMEOUT = 20.0

#: Seconds that stopping an engine may take.
STOP_TIMEOUT = 5.0

#: Seconds of the lease under which the presence entry is added.
LEASE = 60.0

#: The history of the scratch channel, and the messages published to it.
HISTORY = History(size=2, ttl=60)
TEXTS = ("one", "two", "three")

#: Marks of a problem, of something that could be better, and of a check that has passed.
WRONG, WARNING, GOOD = typer.style("✗", "red"), typer.style("!", "yellow"), typer.style("✓", "green")


class CheckFailed(Exception):
    """A problem that makes further checks useless.

    :param text: the problem.
    :param advice: the fix.
    """

    def __init__(self, text: str, advice: str) -> None:
        super().__init__(text)
        self.diagnosis = Diagnosis(False, text, advice)


class RecordingSink:
    """A sink that keeps the publications it receives."""

    def __init__(self) -> None:
        self.publications: list[Publication] = []
        self._changed = asyncio.Event()

    async def received(self, count: int) -> None:
        """Wait until ``count`` publications have arrived."""
        while len(self.publications) < count:
            self._changed.clear()
            await self._changed.wait()

    def on_publication(self, publication: Publication) -> None:
        self.publications.append(publication)
        self._changed.set()

    def on_disconnect(self, reason: str) -> None:
        pass

    def on_reconnect(self) -> None:
        pass


def doctor(url: URL, namespace: Namespace = "hubbub") -> None:
    """Check whether an engine is reachable, usable and set up well, and whether messages arrive.

    Publishes to a scratch channel and removes it again. Lines marked with ✗ are problems; lines marked with !
    could be better. Exits with 1 if there is a problem, with 0 otherwise.

    [bold]Examples[/bold]

      hubbub doctor redis://localhost

      hubbub doctor postgresql://app:secret@db/shop --namespace shop
    """
    # The doctor prints each problem itself, once.
    logging.getLogger("hubbub").setLevel(logging.CRITICAL)
    is_ok = asyncio.run(report(examine(url, namespace)))
    if not is_ok:
        raise typer.Exit(FAILURE)


async def report(diagnoses: AsyncIterator[Diagnosis]) -> bool:
    """Print each diagnosis as it comes. Returns whether there is no problem."""
    is_ok = True
    async for diagnosis in diagnoses:
        is_ok = is_ok and diagnosis.ok
        mark = WRONG if not diagnosis.ok else WARNING if diagnosis.advice else GOOD
        typer.echo(f"{mark} {_printable(diagnosis.text)}")
        if diagnosis.advice:
            typer.echo(f"  → {_printable(diagnosis.advice)}")
    typer.echo("All is well." if is_ok else "There are problems.")
    return is_ok


async def examine(url: str, namespace: str) -> AsyncIterator[Diagnosis]:
    """Yield a diagnosis of each check, until one has failed that the others depend on."""
    try:
        engines = [shared_engine_for(url, namespace) for _ in range(2)]
    except (HubbubError, ValueError) as exc:
        yield Diagnosis(False, f"{without_password(url)}: {exc}", "")
        return
    yield Diagnosis(
        True, f"{without_password(url)} uses {type(engines[0]).__name__}, namespace {namespace!r}"
    )
    started: list[Engine] = []
    sink = RecordingSink()
    try:
        begun = time.perf_counter()
        for engine in engines:
            await _step(engine.start(sink if engine is engines[0] else RecordingSink()), "start")
            started.append(engine)
        yield Diagnosis(
            True, f"the server is reachable ({(time.perf_counter() - begun) / 2 * 1000:.0f} ms to connect)"
        )
        for diagnosis in await _step(engines[0].inspect(), "report its settings"):
            yield diagnosis
        async for diagnosis in _try_out(engines[0], engines[1], sink):
            yield diagnosis
    except CheckFailed as exc:
        yield exc.diagnosis
    finally:
        for engine in started:
            with suppress(Exception):
                async with asyncio.timeout(STOP_TIMEOUT):
                    await engine.stop()


async def _try_out(subscribing: Engine, publishing: Engine, sink: RecordingSink) -> AsyncIterator[Diagnosis]:
    """Publish with one engine and receive with the other one, in a scratch channel."""
    channel = f"hubbub-doctor-{token_hex(8)}"
    ids = publication_ids()
    top = START

    async def publish(text: str, history: History | None, key: str | None = None) -> Position:
        publication = Publication(channel, text.encode(), "text", id=next(ids))
        return await _step(publishing.publish(publication, history, key), "accept a message")

    await _step(subscribing.subscribe(channel), "subscribe to a channel")
    try:
        begun = time.perf_counter()
        await publish("hello", None)
        await _step(sink.received(1), "deliver a message that another process publishes")
        yield Diagnosis(
            True, f"messages reach other processes ({(time.perf_counter() - begun) * 1000:.0f} ms)"
        )
        for text in TEXTS:
            top = await publish(text, HISTORY)
        page = await _step(subscribing.history(channel, Position(1, top.epoch)), "read a history")
        found = [publication.data.decode() for publication in page.publications]
        if found != [*TEXTS[1:]] or page.position != top:
            raise CheckFailed(
                f"a history should hold {list(TEXTS[1:])} up to {tuple(top)}, but holds {found} up to "
                f"{tuple(page.position)}",
                "Check whether another program writes to this namespace or removes keys from it.",
            )
        yield Diagnosis(True, "histories are stored and read")
        first, second = await publish("once", HISTORY, "key"), await publish("once", HISTORY, "key")
        if first != second:
            raise CheckFailed(
                f"a message with an idempotency key is published twice: at {tuple(first)} and at "
                f"{tuple(second)}",
                "Check whether the server loses or evicts keys.",
            )
        yield Diagnosis(True, "a message with an idempotency key is published once")
        await _try_presence(subscribing, publishing, channel)
        yield Diagnosis(True, "presence is shared between processes")
    finally:
        # If the removal fails, the scratch channel expires by itself.
        with suppress(CheckFailed):
            await _step(publishing.remove_history(channel), "remove a history")
            await _step(subscribing.unsubscribe(channel), "unsubscribe from a channel")


async def _try_presence(one: Engine, other: Engine, channel: str) -> None:
    """Add a presence entry with ``other`` and read it with ``one``."""
    lease, change = token_hex(8), PresenceChange(channel, "doctor", b"{}")
    await _step(other.update_presence(lease, LEASE, [change], begin=True), "add a presence entry")
    try:
        found = await _step(one.presence(channel), "read the presence of a channel")
        if dict(found) != {"doctor": b"{}"}:
            raise CheckFailed(
                f"a channel should have one presence entry, but has {len(found)}",
                "Check whether the server loses or evicts keys.",
            )
    finally:
        removal = change._replace(data=None)
        # A ttl of 0 ends the lease. Nodes remove lapsed leases: they know about outages of the engine.
        await _step(other.update_presence(lease, 0, [removal]), "remove a presence entry")


async def _step(result: Awaitable[T], step: str) -> T:
    """Await ``result``.

    :param step: the engine's action, for the error message: "accept a message".
    :raises CheckFailed: the engine raised an error, or took longer than ``STEP_TIMEOUT``.
    """
    try:
        async with asyncio.timeout(STEP_TIMEOUT):
            return await result
    except TimeoutError:
        text = f"the engine could not {step} within {STEP_TIMEOUT:g} s"
    except EngineUnavailable as exc:
        text = str(exc)
    except Exception as exc:
        # Any exception: the engine may be from another package.
        text = f"the engine could not {step}: {type(exc).__name__}: {exc}"
    raise CheckFailed(text, advise(text))


def without_password(url: str) -> str:
    """Return ``url`` without any part that may be a password."""
    scheme, separator, rest = url.partition("://")
    if not separator:
        return "the URL"
    credentials, at, location = rest.rpartition("@")
    if re.search(r"[/?#]", credentials):
        # The last '@' is not the end of the credentials, or they are not quoted: the parts are ambiguous.
        return f"{scheme}://…"
    location = re.sub(r"[?#].*", "?…", location, flags=re.DOTALL)
    return f"{scheme}://{'…@' if at else ''}{location}"


def _printable(text: str) -> str:
    return "".join(char if char.isprintable() else "�" for char in text)
