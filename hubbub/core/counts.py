"""Counts: the events of channels on one node, since it was made.

They are plain integers that are added to where the event happens. The fan-out adds once for each batch, and
never for each subscriber: counting must cost nothing where it is done a million times a second.
"""

from __future__ import annotations


class Counts:
    """The counts of a node. All its feeds add to one object, except for those of the node's own channels."""

    __slots__ = (
        "delivered",
        "failed_recoveries",
        "failed_repairs",
        "published",
        "received",
        "recoveries",
        "repairs",
    )

    def __init__(self) -> None:
        #: Publications that this process published.
        self.published = 0
        #: Publications that the engine handed to a channel with subscribers, repeated ones included.
        self.received = 0
        #: Publications times the subscribers that they were written to.
        self.delivered = 0
        #: Subscribers that resumed, and got all that they had missed.
        self.recoveries = 0
        #: Subscribers that gave a position from which they could not resume.
        self.failed_recoveries = 0
        #: Reads of the history after which a channel has all publications.
        self.repairs = 0
        #: Reads of the history in which publications were missing, so that all subscribers were notified.
        self.failed_repairs = 0
