"""``hubbub tail``: see what is published, as it is published."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
import sys
import time
from base64 import b64encode
from collections.abc import Sequence
from contextlib import suppress
from datetime import datetime
from typing import Annotated, Any, NamedTuple, Protocol, TypeAlias

import typer

from hubbub.cli import position
from hubbub.cli.errors import explained, fail
from hubbub.cli.options import URL_HELP, Namespace, is_url, url_from
from hubbub.codes import CloseCode
from hubbub.core.forms import Form
from hubbub.core.frames import Batch, Frame
from hubbub.core.publication import START, Position, Publication, check_channel
from hubbub.core.subscriber import Start
from hubbub.engines import Engine
from hubbub.exceptions import Unrecoverable
from hubbub.node.node import Node
from hubbub.publisher import shared_engine_for

#: Asks for everything that a channel keeps.
EVERYTHING = 2**31 - 1

#: Seconds that saying goodbye may take.
CLOSE = 1.0


class Break(NamedTuple):
    """Something is lost; the channel goes on from ``position``."""

    channel: str
    position: Position


Event: TypeAlias = Publication | Break


class Reader:
    """A member of channels that keeps what it is handed until somebody asks for it."""

    id = "tail"
    recovers_in_pieces = True

    def __init__(self) -> None:
        self._events: list[Event] = []
        self._has_events = asyncio.Event()

    async def events(self) -> Sequence[Event]:
        """What has come since the last time, as soon as something has."""
        await self._has_events.wait()
        self._has_events.clear()
        events, self._events = self._events, []
        return events

    def add(self, *events: Event) -> None:
        self._events += events
        self._has_events.set()

    def write(self, batch: Batch) -> int:
        self.add(*(each.publication for each in batch.messages if each.publication is not None))
        return len(batch)

    def write_rest(self, batch: Batch, taken: int) -> None:
        """Nothing is ever left."""

    async def ready(self) -> int:
        return sys.maxsize

    def joined(self, channel: str, form: Form, start: Start, missed: Sequence[Frame]) -> None:
        self.add(*(frame.publication for frame in missed))

    def broken(self, channel: str, position: Position) -> bool:
        self.add(Break(channel, position))
        return True


class Printer(Protocol):
    """How events are printed."""

    def publication(self, publication: Publication) -> None: ...

    def broken(self, channel: str, position: Position) -> None: ...


class Text:
    """For people: a line for each message, in which nothing can do something to the terminal."""

    def __init__(self, has_several_channels: bool) -> None:
        self._has_several_channels = has_several_channels

    def publication(self, publication: Publication) -> None:
        told = datetime.fromtimestamp(_time(publication)).strftime("%H:%M:%S.%f")[:-3]
        words = [told, position.show(publication.position)]
        if self._has_several_channels:
            words.append(_escaped(publication.channel))
        words.append(_shown(publication))
        typer.echo("  ".join(words))

    def broken(self, channel: str, top: Position) -> None:
        typer.echo(
            f"Something is lost in {_escaped(channel)}: what comes next does not follow what came before. "
            f"The channel stands at {position.show(top)}.",
            err=True,
        )


class JSON:
    """For programs: a JSON object on each line."""

    def publication(self, publication: Publication) -> None:
        data: dict[str, Any]
        if publication.kind == "binary":
            data = {"data_base64": b64encode(publication.data).decode()}
        else:
            text = publication.data.decode(errors="replace")
            data = {"data": text}
            if publication.kind == "json":
                with suppress(ValueError):
                    data = {"data": json.loads(text)}
        self._print(
            channel=publication.channel,
            offset=publication.offset,
            epoch=publication.epoch,
            time=_time(publication),
            kind=publication.kind,
            **data,
            id=publication.id,
        )

    def broken(self, channel: str, position: Position) -> None:
        self._print(event="break", channel=channel, offset=position.offset, epoch=position.epoch)

    def _print(self, **fields: object) -> None:
        typer.echo(json.dumps(fields))


def tail(
    words: Annotated[
        list[str],
        typer.Argument(
            metavar="[URL] CHANNEL", help=f"The channels' names. URL: {URL_HELP}", show_default=False
        ),
    ],
    since: Annotated[
        str | None,
        typer.Option(
            metavar="OFFSET:EPOCH", help="First what came after this position; 'start' is all that is kept."
        ),
    ] = None,
    history: Annotated[
        int, typer.Option(min=0, help="First the last messages, so many of each channel.")
    ] = 0,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print a JSON object for each message, on a line of its own.")
    ] = False,
    namespace: Namespace = "hubbub",
) -> None:
    """Print what is published to channels, until it is ended by Ctrl+C.

    While the engine is away it waits, and goes on where it was, in channels with a history. If something is
    lost all the same, it says so: on standard error, or with --json as {"event": "break", …}. That holds for
    --since too: if not everything since then is there, what is there comes after the break.

    [bold]Examples[/bold]

      hubbub tail redis://localhost chat

      hubbub tail sqlite:///hub.db room:1 --since 17:c0ffee42

      hubbub tail redis://localhost orders --since start --json | jq .data
    """
    at = 1 if is_url(words[0]) else 0
    url, channels = url_from(words[:at]), words[at:]
    if not channels:
        fail("The name of a channel is missing behind the URL.")
    start = None if since is None else position.parse(since)
    if start is not None and history:
        fail(
            "Leave out --since or --history: the one is after a position, the other before the next message."
        )
    if start not in (None, START) and len(channels) > 1:
        fail("A position is that of one channel: name one, or use --since start.")
    if start == START:
        start, history = None, EVERYTHING
    # What the engine has to say, such as that it is away.
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    printer = JSON() if as_json else Text(len(channels) > 1)
    try:
        with explained(url, namespace):
            channels = list(dict.fromkeys(check_channel(channel) for channel in channels))
            engine = shared_engine_for(url, namespace)
            asyncio.run(_until_signal(_tail(engine, channels, start, history, printer)))
    except BrokenPipeError:
        # Nobody reads any more. Python is not to find out once again when it flushes at the end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


async def _until_signal(coroutine: Any) -> None:
    """Run ``coroutine`` until it ends, or SIGINT or SIGTERM ends it."""
    task = asyncio.ensure_future(coroutine)
    loop = asyncio.get_running_loop()
    for sig in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(sig, task.cancel)
    with suppress(asyncio.CancelledError):
        await task


async def _tail(
    engine: Engine, channels: Sequence[str], since: Position | None, history: int, printer: Printer
) -> None:
    node, reader = Node(engine), Reader()
    await node.start()
    try:
        for channel in channels:
            try:
                await node.join(channel, reader, since, history)
            except Unrecoverable as exc:
                reader.broken(channel, Position(exc.offset, exc.epoch))
                await node.join(channel, reader, history=EVERYTHING)
        while True:
            for event in await reader.events():
                if isinstance(event, Break):
                    printer.broken(event.channel, event.position)
                else:
                    printer.publication(event)
    finally:
        await node.stop(CloseCode.GOING_AWAY, "", CLOSE)


def _time(publication: Publication) -> float:
    """When it was accepted; now, if the engine does not say."""
    return publication.time or time.time()


def _shown(publication: Publication) -> str:
    if publication.kind == "binary":
        return repr(publication.data)
    return _escaped(publication.data.decode(errors="backslashreplace"))


def _escaped(text: str) -> str:
    """``text`` without what moves the cursor, changes colours, turns writing around or begins a line."""
    if text.isprintable():
        return text
    return "".join(
        each if each.isprintable() else each.encode("unicode_escape").decode("ascii") for each in text
    )
