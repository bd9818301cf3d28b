"""What this node knows of the streams of the channels that it is subscribed to.

After an outage, each stream is compared with it before anything else is asked of the servers. So a node that
has outlived the restart of a server finds out whether the server still has what the node was told.
"""

from __future__ import annotations

from hubbub.core.history import History
from hubbub.core.publication import START


class Known:
    """One channel's stream.

    :param history: what the channel was declared to keep.
    """

    __slots__ = ("epoch", "history", "id", "offset")

    def __init__(self, history: History | None) -> None:
        self.history = history
        #: Of the newest publication that the node was told of, by the engine or by its own publishing.
        self.offset, self.epoch = START
        #: Of the same publication.
        self.id = ""

    @property
    def is_stream(self) -> bool:
        """Whether the channel has a stream, as far as is known, or is to have one."""
        return self.history is not None or self.epoch != ""

    def learn(self, offset: int, epoch: str, publication_id: str) -> None:
        """Take what was told. Answers and announcements come on different connections, so it may be old.

        :param publication_id: of the publication that stands there; empty if the server does not know it.
        """
        if epoch == self.epoch:
            is_older = offset < self.offset
            if is_older or (offset == self.offset and not publication_id):
                return
        self.offset, self.epoch, self.id = offset, epoch, publication_id
