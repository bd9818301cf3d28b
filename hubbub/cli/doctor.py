"""``hubbub doctor``: say whether an engine is there, fit for use and set up well, and what to do if not."""

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
from hubbub.cli.errors import FAILURE
from hubbub.cli.options import URL, Namespace
from hubbub.core.history import History
from hubbub.core.publication import START, Position, Publication, publication_ids
from hubbub.engines.base import Engine, PresenceChange
from hubbub.engines.diagnostics import Diagnosis
from hubbub.exceptions import EngineUnavailable, HubbubError
from hubbub.publisher import shared_engine_for

T = TypeVar("T")

#: Seconds after which a step that has no end is given up; engines give up sooner.
DEADLINE = 20.0

#: Seconds that saying goodbye may take.
CLOSE = 5.0

#: Seconds for which somebody is present there.
PRESENCE = 60.0

#: What the scratch channel keeps, and what is published to it.
HISTORY = History(size=2, ttl=60)
TEXTS = ("one", "two", "three")

#: Something is wrong, or could be better, or is as it should be.
WRONG, WARNING, GOOD = typer.style("✗", "red"), typer.style("!", "yellow"), typer.style("✓", "green")


class Sick(Exception):
    """Something is wrong that makes it useless to go on."""

    def __init__(self, text: str, advice: str) -> None:
        super().__init__(text)
        self.finding = Diagnosis(False, text, advice)


class Ear:
    """A sink that keeps what it hears."""

    def __init__(self) -> None:
        self.publications: list[Publication] = []
        self._changed = asyncio.Event()

    async def heard(self, count: int) -> None:
        """Wait until ``count`` publications have come."""
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
    """Look at an engine: can it be reached, may we use it, is it set up well, do messages come through?

    Publishes to a scratch channel and removes it again. Exits with 0 if nothing is wrong (what is marked with
    '!' could be better), with 1 otherwise.

    [bold]Examples[/bold]

      hubbub doctor redis://localhost

      hubbub doctor postgresql://app:secret@db/shop --namespace shop
    """
    # What goes wrong is told here, once.
    logging.getLogger("hubbub").setLevel(logging.CRITICAL)
    is_ok = asyncio.run(_report(_examine(url, namespace)))
    if not is_ok:
        raise typer.Exit(FAILURE)


async def _report(findings: AsyncIterator[Diagnosis]) -> bool:
    """Print what is found, as soon as it is. Returns whether all of it is as it should be."""
    is_ok = True
    async for finding in findings:
        is_ok = is_ok and finding.ok
        mark = WRONG if not finding.ok else WARNING if finding.advice else GOOD
        typer.echo(f"{mark} {_printable(finding.text)}")
        if finding.advice:
            typer.echo(f"  → {_printable(finding.advice)}")
    typer.echo("All is well." if is_ok else "Something is wrong.")
    return is_ok


async def _examine(url: str, namespace: str) -> AsyncIterator[Diagnosis]:
    try:
        engines = [shared_engine_for(url, namespace) for _ in range(2)]
    except (HubbubError, ValueError) as exc:
        yield Diagnosis(False, f"{hidden(url)}: {exc}", "")
        return
    yield Diagnosis(True, f"{hidden(url)} is for {type(engines[0]).__name__}, namespace {namespace!r}")
    started: list[Engine] = []
    ear = Ear()
    try:
        begun = time.perf_counter()
        for engine in engines:
            await _step(engine.start(ear if engine is engines[0] else Ear()), "be there")
            started.append(engine)
        yield Diagnosis(True, f"it is there ({(time.perf_counter() - begun) / 2 * 1000:.0f} ms to connect)")
        for finding in await _step(engines[0].inspect(), "tell about itself"):
            yield finding
        async for finding in _try_out(engines[0], engines[1], ear):
            yield finding
    except Sick as exc:
        yield exc.finding
    finally:
        for engine in started:
            with suppress(Exception):
                async with asyncio.timeout(CLOSE):
                    await engine.stop()


async def _try_out(hearing: Engine, speaking: Engine, ear: Ear) -> AsyncIterator[Diagnosis]:
    """Publish with one engine and hear with the other one, in a channel of our own."""
    channel = f"hubbub-doctor-{token_hex(8)}"
    ids = publication_ids()
    top = START

    async def publish(text: str, history: History | None, key: str | None = None) -> Position:
        publication = Publication(channel, text.encode(), "text", id=next(ids))
        return await _step(speaking.publish(publication, history, key), "take a message")

    await _step(hearing.subscribe(channel), "let us subscribe")
    try:
        begun = time.perf_counter()
        await publish("hello", None)
        await _step(ear.heard(1), "hand over what another process publishes")
        yield Diagnosis(
            True, f"what one process publishes, another hears ({(time.perf_counter() - begun) * 1000:.0f} ms)"
        )
        for text in TEXTS:
            top = await publish(text, HISTORY)
        page = await _step(hearing.history(channel, Position(1, top.epoch)), "let us read a history")
        found = [publication.data.decode() for publication in page.publications]
        if found != [*TEXTS[1:]] or page.position != top:
            raise Sick(
                f"Expected the history to hold {list(TEXTS[1:])} up to {tuple(top)}, but got {found} up to "
                f"{tuple(page.position)}.",
                "Look whether something else writes or removes what this namespace holds.",
            )
        yield Diagnosis(True, "histories are kept and read")
        first, second = await publish("once", HISTORY, "key"), await publish("once", HISTORY, "key")
        if first != second:
            raise Sick(
                f"Expected a key to publish once, at {tuple(first)}, but it did again, at {tuple(second)}.",
                "Look whether the server loses or evicts what it is given.",
            )
        yield Diagnosis(True, "a message with an idempotency key is published once")
        await _try_presence(hearing, speaking, channel)
        yield Diagnosis(True, "who is present in one process, another sees")
    finally:
        # What is left of the scratch channel expires by itself.
        with suppress(Sick):
            await _step(speaking.remove_history(channel), "remove a history")
            await _step(hearing.unsubscribe(channel), "let us unsubscribe")


async def _try_presence(one: Engine, other: Engine, channel: str) -> None:
    """Enter somebody with one engine and look with the other one."""
    lease, change = token_hex(8), PresenceChange(channel, "doctor", b"{}")
    await _step(other.update_presence(lease, PRESENCE, [change], begin=True), "enter who is present")
    try:
        found = await _step(one.presence(channel), "tell who is present")
        if dict(found) != {"doctor": b"{}"}:
            raise Sick(
                f"Expected one connection to be present, but got {len(found)}.",
                "Look whether the server loses or evicts what it is given.",
            )
    finally:
        left = change._replace(data=None)
        # The lease has lapsed then. It is for nodes to remove such, who know how long the engine was away.
        await _step(other.update_presence(lease, 0, [left]), "remove who was present")


async def _step(answer: Awaitable[T], what: str) -> T:
    """The answer, which is to show that the engine can ``what``.

    :raises Sick: it cannot, or not in time.
    """
    try:
        async with asyncio.timeout(DEADLINE):
            return await answer
    except TimeoutError:
        text = f"Expected it to {what} within {DEADLINE:g} s, but it did not."
    except EngineUnavailable as exc:
        text = str(exc)
    except Exception as exc:
        # Whatever it is: an engine may be anybody's.
        text = f"Expected it to {what}, but got {type(exc).__name__}: {exc}"
    raise Sick(text, advise(text))


def hidden(url: str) -> str:
    """``url`` without what may be a password."""
    scheme, separator, rest = url.partition("://")
    if not separator:
        return "the URL"
    credentials, at, where = rest.rpartition("@")
    if re.search(r"[/?#]", credentials):
        # The last '@' does not end user and password, or they are not quoted: hard to say what is what.
        return f"{scheme}://…"
    where = re.sub(r"[?#].*", "?…", where, flags=re.DOTALL)
    return f"{scheme}://{'…@' if at else ''}{where}"


def _printable(text: str) -> str:
    return "".join(each if each.isprintable() else "�" for each in text)
