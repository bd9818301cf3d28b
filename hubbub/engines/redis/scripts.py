"""The scripts in ``lua``: each is one step to everything else that a server does."""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import sha1
from pathlib import Path

from hubbub.engines.redis.connection import Request

_DIRECTORY = Path(__file__).with_name("lua")


class Script:
    """One script.

    :param names: of the files that make it up, one after another, without ``.lua``.
    :param takes_generation: its first argument is the generation of the server that it is run on.
    """

    def __init__(self, *names: str, takes_generation: bool = False) -> None:
        self.takes_generation = takes_generation
        self.source = "\n".join((_DIRECTORY / f"{name}.lua").read_text(encoding="utf-8") for name in names)
        self.sha = sha1(self.source.encode(), usedforsecurity=False).hexdigest()

    def request(
        self, keys: Sequence[str], arguments: Sequence[bytes | str | int], deadline: float
    ) -> Request:
        """The request to run it.

        :param keys: all of which lie on one node of a cluster.
        :param arguments: without the generation.
        :param deadline: when it is given up, by the event loop's clock.
        :raises UnicodeEncodeError: a key is no text that can be written as UTF-8.
        """
        # Here, where what cannot be encoded is the caller's error. On its way, it would be the connection's.
        encoded = [key.encode() for key in keys]
        head: list[bytes | str | int] = ["EVALSHA", self.sha, len(keys), *encoded]
        if self.takes_generation:
            return Request([*head, "", *arguments], encoded[0], deadline, self.source, len(head))
        return Request([*head, *arguments], encoded[0], deadline, self.source)


# Of streams

PUBLISH = Script("stream", "publish", takes_generation=True)
READ = Script("stream", "generation", "read", takes_generation=True)
DECLARE = Script("stream", "generation", "declare", takes_generation=True)
BEGIN = Script("stream", "generation", "begin", takes_generation=True)
REMOVE = Script("stream", "remove", takes_generation=True)
TOPS = Script("stream", "tops")

# Of presence

RENEW = Script("clock", "renew")
ENTER = Script("enter")
CLAIM = Script("clock", "claim")
CLEAR = Script("clear")
FORGET = Script("forget")

#: What every server is told before it is used.
SCRIPTS = (PUBLISH, READ, DECLARE, BEGIN, REMOVE, TOPS, RENEW, ENTER, CLAIM, CLEAR, FORGET)
