"""``hubbub publish``: publish messages to a channel."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from enum import StrEnum
from typing import Annotated, Any

import typer
from pydantic import RootModel
from pydantic_core import from_json

from hubbub.cli.arguments import URL_HELP, URL_VARIABLE, Namespace, format_position, is_url, url_from
from hubbub.cli.failures import explained, fail
from hubbub.core.history import History
from hubbub.exceptions import InvalidData
from hubbub.publisher import Publisher


class DataFormat(StrEnum):
    """How DATA is read and published."""

    TEXT = "text"
    JSON = "json"
    BINARY = "binary"


def publish(
    *,
    # Optional, though it comes first: click gives two arguments to CHANNEL and DATA, and the rest to URL.
    url: Annotated[list[str] | None, typer.Argument(metavar="URL", help=URL_HELP, show_default=False)] = None,
    channel: Annotated[
        str, typer.Argument(metavar="CHANNEL", help="The channel's name.", show_default=False)
    ],
    data: Annotated[
        str,
        typer.Argument(
            metavar="DATA", help="The message; '-' reads it from standard input.", show_default=False
        ),
    ],
    json: Annotated[bool, typer.Option("--json", help="DATA is JSON; an error if it is not valid.")] = False,
    binary: Annotated[
        bool, typer.Option("--binary", help="Publish standard input unchanged, as a binary message.")
    ] = False,
    lines: Annotated[
        bool, typer.Option("--lines", help="Publish each line of standard input as a separate message.")
    ] = False,
    idempotency_key: Annotated[
        str | None,
        typer.Option(
            help="Publish only once, even if this command is repeated with this key within five minutes."
        ),
    ] = None,
    history_size: Annotated[
        int | None, typer.Option(min=1, help="Number of messages that the channel's history keeps.")
    ] = None,
    history_ttl: Annotated[
        float | None, typer.Option(help="Seconds for which the history keeps a message.", show_default=False)
    ] = None,
    namespace: Namespace = "hubbub",
) -> None:
    """Publish to a channel, and print the message's position as OFFSET:EPOCH.

    In a channel without a history the position is '0:'. A channel that has a history already keeps its
    settings: --history-size and --history-ttl are for a channel that has none yet.

    [bold]Examples[/bold]

      hubbub publish redis://localhost chat 'hello, world'

      hubbub publish sqlite:///hub.db room:1 '{"text": "hello"}' --json

      tail -f access.log | hubbub publish redis://localhost log - --lines

      export HUBBUB_URL=postgresql://app:secret@db/shop; hubbub publish chat hello
    """
    if not url and is_url(channel):
        fail(
            "CHANNEL or DATA is missing after the URL. (For a channel with '://' in its name, give the URL "
            f"too, even if {URL_VARIABLE} is set.)"
        )
    data_format = _data_format(json, binary, lines, is_stdin=data == "-")
    if lines and idempotency_key is not None:
        fail("--lines publishes several messages: leave out --lines or --idempotency-key.")
    address = url_from(url or ())
    with explained(address, namespace), Publisher(address, namespace=namespace) as publisher:
        history = _history(history_size, history_ttl)
        for message in _messages(data, data_format, lines):
            position = publisher.publish(channel, message, history=history, idempotency_key=idempotency_key)
            typer.echo(format_position(position))


def _data_format(json: bool, binary: bool, lines: bool, *, is_stdin: bool) -> DataFormat:
    if json and binary:
        fail("A message is JSON or binary: leave out --json or --binary.")
    if (binary or lines) and not is_stdin:
        fail(f"{'--binary' if binary else '--lines'} reads standard input: give '-' as DATA.")
    if binary and lines:
        fail("--lines publishes text or JSON: leave out --lines or --binary.")
    return DataFormat.JSON if json else DataFormat.BINARY if binary else DataFormat.TEXT


def _history(size: int | None, ttl: float | None) -> History | None:
    if size is None and ttl is None:
        return None
    default = History()
    return History(default.size if size is None else size, default.ttl if ttl is None else ttl)


def _messages(data: str, data_format: DataFormat, lines: bool) -> Iterator[object]:
    """Yield the data of each message, as :meth:`hubbub.Publisher.publish` takes it."""
    if data != "-":
        yield _message(data.encode(errors="surrogateescape"), data_format)
    elif lines:
        for line in sys.stdin.buffer:
            yield _message(_without_newline(line), data_format)
    elif data_format is DataFormat.BINARY:
        yield sys.stdin.buffer.read()
    else:
        # echo and editors add a newline, which is not part of the message.
        yield _message(_without_newline(sys.stdin.buffer.read()), data_format)


def _without_newline(line: bytes) -> bytes:
    return line.removesuffix(b"\n").removesuffix(b"\r")


def _message(data: bytes, data_format: DataFormat) -> object:
    try:
        if data_format is DataFormat.JSON:
            # The model makes Publisher publish a JSON string as JSON; a str would be published as text.
            return RootModel[Any](from_json(data, allow_inf_nan=False))
        return data.decode()
    except UnicodeDecodeError as exc:
        raise InvalidData(f"Expected text in UTF-8, but got {exc}. Use --binary for bytes.") from exc
    except ValueError as exc:
        raise InvalidData(f"Expected DATA to be JSON, but it is not: {exc}.") from exc
