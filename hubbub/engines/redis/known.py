"""The last known position of each stream that a node is subscribed to.

After an outage, each stream is compared with it before any other command is sent to the servers. So a node
that was running while a server restarted finds out whether the server still has all publications that the
node has received.
"""

from __future__ import annotations

from hubbub.core.history import History
from hubbub.core.publication import START


class KnownStream:
    """The newest known position of one channel.

    :param history: the history that the channel was declared with.
    """

    __slots__ = ("epoch", "history", "id", "offset")

    def __init__(self, history: History | None) -> None:
        self.history = history
        #: The position of the newest publication that the node received or published.
        self.offset, self.epoch = START
        #: The id of the same publication.
        self.id = ""

    @property
    def is_stream(self) -> bool:
        """Whether the channel has a stream, as far as is known, or is declared to have one."""
        return self.history is not None or self.epoch != ""

    def learn(self, offset: int, epoch: str, publication_id: str) -> None:
        """Note a position that the server has sent, unless it is older than the known one.

        Answers and announcements come on different connections, so they may come in another order.

        :param publication_id: the id of the publication there; empty if the server does not know it.
        """
        if epoch == self.epoch:
            is_older = offset < self.offset
            if is_older or (offset == self.offset and not publication_id):
                return
        self.offset, self.epoch, self.id = offset, epoch, publication_id
