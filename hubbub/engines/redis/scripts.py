"""The scripts in ``lua``: each is one step to everything else that a server does."""

from __future__ import annotations

from hashlib import sha1
from pathlib import Path

_DIRECTORY = Path(__file__).with_name("lua")


class Script:
    """One script.

    :param names: of the files that make it up, one after another, without ``.lua``.
    """

    def __init__(self, *names: str) -> None:
        self.source = "\n".join((_DIRECTORY / f"{name}.lua").read_text(encoding="utf-8") for name in names)
        self.sha = sha1(self.source.encode(), usedforsecurity=False).hexdigest()


# Of streams

PUBLISH = Script("stream", "publish")
READ = Script("stream", "read")
REMOVE = Script("stream", "remove")

# Of presence

RENEW = Script("clock", "renew")
ENTER = Script("enter")
CLAIM = Script("clock", "claim")
CLEAR = Script("clear")
FORGET = Script("forget")

#: What every server is told before it is used.
SCRIPTS = (PUBLISH, READ, REMOVE, RENEW, ENTER, CLAIM, CLEAR, FORGET)
