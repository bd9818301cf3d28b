"""Arguments and options that several commands share."""

from __future__ import annotations

from typing import Annotated, TypeAlias

import typer

URL: TypeAlias = Annotated[
    str,
    typer.Argument(
        metavar="URL",
        help="The URL given to Hub(): sqlite:///hub.db, redis://…, postgresql://…",
        show_default=False,
    ),
]
Namespace: TypeAlias = Annotated[str, typer.Option(help="The namespace given to Hub().")]
