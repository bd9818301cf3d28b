"""The scripts in ``lua``, each of which a server runs as one step."""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import sha1
from pathlib import Path

from hubbub.engines.redis.connection import Request

_DIRECTORY = Path(__file__).with_name("lua")


class Script:
    """One script.

    :param names: the files that make it up, in this order, without ``.lua``.
    :param takes_generation: its first argument is the generation of the server that runs it.
    """

    def __init__(self, *names: str, takes_generation: bool = False) -> None:
        self.takes_generation = takes_generation
        self.source = "\n".join((_DIRECTORY / f"{name}.lua").read_text(encoding="utf-8") for name in names)
        self.sha = sha1(self.source.encode(), usedforsecurity=False).hexdigest()

    def request(
        self, keys: Sequence[str], arguments: Sequence[bytes | str | int], deadline: float
    ) -> Request:
        """Return the request to run the script.

        :param keys: all of which lie on one node of a cluster.
        :param arguments: without the generation.
        :param deadline: when the request fails without an answer, by the event loop's clock.
        :raises UnicodeEncodeError: a key cannot be encoded as UTF-8.
        """
        # Encoded here, where an error is the caller's. In the connection, it would break the connection.
        encoded = [key.encode() for key in keys]
        head: list[bytes | str | int] = ["EVALSHA", self.sha, len(keys), *encoded]
        if self.takes_generation:
            return Request([*head, "", *arguments], encoded[0], deadline, self.source, len(head))
        return Request([*head, *arguments], encoded[0], deadline, self.source)


# Streams

PUBLISH = Script("stream", "publish", takes_generation=True)
READ = Script("stream", "generation", "read", takes_generation=True)
DECLARE = Script("stream", "generation", "declare", takes_generation=True)
BEGIN = Script("stream", "generation", "begin", takes_generation=True)
REMOVE = Script("stream", "remove", takes_generation=True)
TOPS = Script("stream", "tops")

# Presence

RENEW = Script("clock", "renew")
ENTER = Script("enter")
CLAIM = Script("clock", "claim")
CLEAR = Script("clear")
FORGET = Script("forget")

#: The scripts that are loaded into every server before it is used.
SCRIPTS = (PUBLISH, READ, DECLARE, BEGIN, REMOVE, TOPS, RENEW, ENTER, CLAIM, CLEAR, FORGET)
