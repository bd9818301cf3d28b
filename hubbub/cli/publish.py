"""``hubbub publish``: send something to everyone in a channel."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from enum import StrEnum
from typing import Annotated, Any

import typer
from pydantic import RootModel
from pydantic_core import from_json

from hubbub.cli import position
from hubbub.cli.errors import explained, fail
from hubbub.cli.options import URL_HELP, URL_VARIABLE, Namespace, is_url, url_from
from hubbub.core.history import History
from hubbub.exceptions import InvalidData
from hubbub.publisher import Publisher


class Form(StrEnum):
    """How data is read from the command line."""

    TEXT = "text"
    JSON = "json"
    BINARY = "binary"


def publish(
    *,
    # At most one. With three words it is the first; with two there is none, and CHANNEL and DATA get them.
    url: Annotated[list[str] | None, typer.Argument(metavar="URL", help=URL_HELP, show_default=False)] = None,
    channel: Annotated[
        str, typer.Argument(metavar="CHANNEL", help="The channel's name.", show_default=False)
    ],
    data: Annotated[
        str,
        typer.Argument(
            metavar="DATA", help="What to publish; '-' reads it from standard input.", show_default=False
        ),
    ],
    json: Annotated[
        bool, typer.Option("--json", help="DATA is JSON, and goes out as JSON if it is valid.")
    ] = False,
    binary: Annotated[
        bool, typer.Option("--binary", help="Standard input goes out as bytes, as it is.")
    ] = False,
    lines: Annotated[
        bool, typer.Option("--lines", help="Each line of standard input is a message of its own.")
    ] = False,
    idempotency_key: Annotated[
        str | None,
        typer.Option(help="Publish once only, however often it is tried with this key within five minutes."),
    ] = None,
    history_size: Annotated[
        int | None, typer.Option(min=1, help="Messages that the channel keeps from now on.")
    ] = None,
    history_ttl: Annotated[
        float | None, typer.Option(help="Seconds that it keeps each of them.", show_default=False)
    ] = None,
    namespace: Namespace = "hubbub",
) -> None:
    """Publish to a channel, and print the position: OFFSET:EPOCH.

    In a channel without a history that is '0:'. A channel that has a history keeps it; the options are for
    one that does not have any yet.

    [bold]Examples[/bold]

      hubbub publish redis://localhost chat 'hello, everybody'

      hubbub publish sqlite:///hub.db room:1 '{"text": "hello"}' --json

      tail -f access.log | hubbub publish redis://localhost log - --lines

      export HUBBUB_URL=postgresql://app:secret@db/shop; hubbub publish chat hello
    """
    if not url and is_url(channel):
        fail(
            "CHANNEL or DATA is missing behind the URL. (For a channel with '://' in its name, give the URL "
            f"too, also where {URL_VARIABLE} is set.)"
        )
    form = _form(json, binary, lines, is_stdin=data == "-")
    if lines and idempotency_key is not None:
        fail("--lines publishes several messages: leave out --lines or --idempotency-key.")
    address = url_from(url or ())
    with explained(address, namespace), Publisher(address, namespace=namespace) as publisher:
        history = _history(history_size, history_ttl)
        for each in _messages(data, form, lines):
            top = publisher.publish(channel, each, history=history, idempotency_key=idempotency_key)
            typer.echo(position.show(top))


def _form(json: bool, binary: bool, lines: bool, *, is_stdin: bool) -> Form:
    if json and binary:
        fail("A message is JSON or binary: leave out --json or --binary.")
    if (binary or lines) and not is_stdin:
        fail(f"{'--binary' if binary else '--lines'} reads standard input: put '-' in the place of DATA.")
    if binary and lines:
        fail("Bytes have no lines: leave out --lines or --binary.")
    return Form.JSON if json else Form.BINARY if binary else Form.TEXT


def _history(size: int | None, ttl: float | None) -> History | None:
    if size is None and ttl is None:
        return None
    default = History()
    return History(default.size if size is None else size, default.ttl if ttl is None else ttl)


def _messages(data: str, form: Form, lines: bool) -> Iterator[object]:
    """What is to be published, as ``Publisher.publish`` takes it."""
    if data != "-":
        yield _message(data.encode(errors="surrogateescape"), form)
    elif lines:
        for line in sys.stdin.buffer:
            yield _message(_without_newline(line), form)
    elif form is Form.BINARY:
        yield sys.stdin.buffer.read()
    else:
        # Put there by echo and editors, and meant by nobody.
        yield _message(_without_newline(sys.stdin.buffer.read()), form)


def _without_newline(line: bytes) -> bytes:
    return line.removesuffix(b"\n").removesuffix(b"\r")


def _message(data: bytes, form: Form) -> object:
    try:
        if form is Form.JSON:
            # A string that is JSON is not to go out as text.
            return RootModel[Any](from_json(data, allow_inf_nan=False))
        return data.decode()
    except UnicodeDecodeError as exc:
        raise InvalidData(f"Expected text in UTF-8, but got {exc}. For bytes, there is --binary.") from exc
    except ValueError as exc:
        raise InvalidData(f"Expected JSON, but got: {exc}.") from exc
