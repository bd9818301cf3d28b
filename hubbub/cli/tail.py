"""``hubbub tail``: print publications as they are published."""

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

from hubbub.cli.arguments import URL_HELP, Namespace, format_position, is_url, parse_position, url_from
from hubbub.cli.failures import explained, fail
from hubbub.codes import CloseCode
from hubbub.core.forms import Form
from hubbub.core.frames import Batch, Frame
from hubbub.core.publication import START, Position, Publication, check_channel
from hubbub.core.subscriber import Start
from hubbub.engines import Engine
from hubbub.exceptions import Unrecoverable
from hubbub.node.node import Node
from hubbub.publisher import shared_engine_for

#: A history size that no channel exceeds: reads all publications that a channel keeps.
ALL = 2**31 - 1

#: Seconds that stopping the node may take.
STOP_TIMEOUT = 1.0


class Break(NamedTuple):
    """A gap in a channel, which continues at ``position``."""

    channel: str
    position: Position


Event: TypeAlias = Publication | Break


class Reader:
    """A subscriber that keeps its events until they are read."""

    id = "tail"
    recovers_in_pieces = True

    def __init__(self) -> None:
        self._events: list[Event] = []
        self._has_events = asyncio.Event()

    async def events(self) -> Sequence[Event]:
        """Wait for events, and return all since the last call."""
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
        """Never called: ``write`` takes every batch whole."""

    async def ready(self) -> int:
        return sys.maxsize

    def joined(self, channel: str, form: Form, start: Start, missed: Sequence[Frame]) -> None:
        self.add(*(frame.publication for frame in missed))

    def broken(self, channel: str, position: Position) -> bool:
        self.add(Break(channel, position))
        return True


class Printer(Protocol):
    """An output format."""

    def publication(self, publication: Publication) -> None: ...

    def broken(self, channel: str, position: Position) -> None: ...


class TextPrinter:
    """For people: one line per publication, without characters that control the terminal."""

    def __init__(self, has_several_channels: bool) -> None:
        self._has_several_channels = has_several_channels

    def publication(self, publication: Publication) -> None:
        time_of_day = datetime.fromtimestamp(_time(publication)).strftime("%H:%M:%S.%f")[:-3]
        words = [time_of_day, format_position(publication.position)]
        if self._has_several_channels:
            words.append(_escaped(publication.channel))
        words.append(_content(publication))
        typer.echo("  ".join(words))

    def broken(self, channel: str, position: Position) -> None:
        typer.echo(
            f"Messages in {_escaped(channel)} are lost: the next one does not follow the last one. "
            f"The channel is now at {format_position(position)}.",
            err=True,
        )


class JSONPrinter:
    """For programs: one JSON object per line."""

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
            metavar="OFFSET:EPOCH",
            help="Begin with the messages after this position; 'start': with all that the channel keeps.",
        ),
    ] = None,
    history: Annotated[
        int, typer.Option(min=0, help="Begin with this number of recent messages of each channel.")
    ] = 0,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object per message, each on its own line.")
    ] = False,
    namespace: Namespace = "hubbub",
) -> None:
    """Print messages as they are published to channels, until Ctrl+C.

    During an outage of the engine it waits, and then continues where it was, in channels with a history. If
    messages are lost all the same, it reports a break: on standard error, or with --json as
    {"event": "break", …}. The same holds for --since: if the history no longer reaches back that far, a break
    comes first and then all that is kept.

    [bold]Examples[/bold]

      hubbub tail redis://localhost chat

      hubbub tail sqlite:///hub.db room:1 --since 17:c0ffee42

      hubbub tail redis://localhost orders --since start --json | jq .data
    """
    at = 1 if is_url(words[0]) else 0
    url, channels = url_from(words[:at]), words[at:]
    if not channels:
        fail("The name of a channel is missing after the URL.")
    start = None if since is None else parse_position(since)
    if start is not None and history:
        fail("--since and --history exclude each other: leave out one of them.")
    if start not in (None, START) and len(channels) > 1:
        fail("A position belongs to one channel: name only one channel, or use --since start.")
    if start == START:
        start, history = None, ALL
    # Show the engine's warnings, such as those about outages.
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    printer = JSONPrinter() if as_json else TextPrinter(len(channels) > 1)
    try:
        with explained(url, namespace):
            channels = list(dict.fromkeys(check_channel(channel) for channel in channels))
            engine = shared_engine_for(url, namespace)
            asyncio.run(_until_signal(_tail(engine, channels, start, history, printer)))
    except BrokenPipeError:
        # The reader of our output has ended. Without this, Python's flush at exit would fail again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


async def _until_signal(coroutine: Any) -> None:
    """Run ``coroutine`` until it ends, or until SIGINT or SIGTERM cancels it."""
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
                await node.join(channel, reader, history=ALL)
        while True:
            for event in await reader.events():
                if isinstance(event, Break):
                    printer.broken(event.channel, event.position)
                else:
                    printer.publication(event)
    finally:
        await node.stop(CloseCode.GOING_AWAY, "", STOP_TIMEOUT)


def _time(publication: Publication) -> float:
    """Return the Unix time at which the publication was accepted, or now if the engine does not record it."""
    return publication.time or time.time()


def _content(publication: Publication) -> str:
    if publication.kind == "binary":
        return repr(publication.data)
    return _escaped(publication.data.decode(errors="backslashreplace"))


def _escaped(text: str) -> str:
    """``text`` with characters escaped that move the cursor, change colours or direction, or end the line."""
    if text.isprintable():
        return text
    return "".join(
        char if char.isprintable() else char.encode("unicode_escape").decode("ascii") for char in text
    )
