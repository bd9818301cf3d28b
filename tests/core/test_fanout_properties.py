"""Feeds and outboxes together: in any order of events, every client gets the messages that it should.

The machine plays the event loop, the sockets and the users. For every client it records, without looking at
the code under test, the messages that the client is owed; the messages that arrive are compared with them.
"""

from __future__ import annotations

import logging
import os
import sys
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from sys import maxsize

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from hubbub.core.feed import Feed
from hubbub.core.forms import Form
from hubbub.core.frames import Batch, Frame, Message
from hubbub.core.outbox import Outbox
from hubbub.core.publication import Position, Publication
from hubbub.core.subscriber import Start
from hubbub.protocols.plain import PLAIN
from hubbub.protocols.websocket import WebSocketMessage
from hubbub.types import SlowConsumer

# When it fails, Hypothesis looks for a shorter way to fail, for minutes if it must.

CHANNELS = ("news", "chat", "ticker")

#: Policy and limit of each client. An empty message costs 256: eight fill one of the tighter ones.
CLIENTS: tuple[tuple[SlowConsumer, int], ...] = (
    ("disconnect", 2048),
    ("disconnect", 4096),
    ("drop_oldest", 2048),
    ("drop_oldest", 4096),
    ("latest", 2048),
    ("latest", 4096),
)

#: Bytes of a message: from nothing to more than any outbox holds.
SIZES = (0, 1, 256, 768, 6000)

clients = st.integers(0, len(CLIENTS) - 1)
channels = st.sampled_from(CHANNELS)
sizes = st.sampled_from(SIZES)
messages = st.lists(st.tuples(channels, sizes), min_size=1, max_size=3)


class Loop:
    """The event loop, as far as a feed knows it."""

    def __init__(self) -> None:
        self._callbacks: list[Callable[[], None]] = []

    def call_soon(self, callback: Callable[[], None]) -> None:
        self._callbacks.append(callback)

    def turn(self) -> None:
        callbacks, self._callbacks = self._callbacks, []
        for callback in callbacks:
            callback()


def no_repair(feed: Feed) -> None:
    raise AssertionError("nothing is missing where there is no history")


class Client:
    """A connection and its socket, with the messages that are owed to it and those that arrived."""

    recovers_in_pieces = True

    def __init__(self, name: str, policy: SlowConsumer, limit: int) -> None:
        self.id = name
        self.outbox = Outbox(limit, policy)
        self.channels: set[str] = set()
        self.stalled = False
        # Nothing arrives any more: the socket broke, or the client was disconnected as slow.
        self.gone = False
        self.raises = False
        self.sending: Batch | None = None
        self.failure: Exception | None = None

        # By channel; under None the direct messages. Empty messages are distinguished by identity.
        self.owed: dict[str | None, list[Message]] = defaultdict(list)
        self.got: dict[str | None, list[Message]] = defaultdict(list)
        # How many messages the feeds have written.
        self.written = 0
        # Bytes of direct sends that wait.
        self.direct = 0
        # By channel, the newest message that no policy can have dropped.
        self.promised: dict[str | None, Message] = {}

    # The connection

    def write(self, batch: Batch) -> int:
        if self.gone:
            if self.raises:
                raise ConnectionError("the socket is gone")
            return len(batch)
        try:
            self._push(batch)
        except Exception as exc:
            # The feed would log it and continue.
            self.failure = exc
        return len(batch)

    def write_rest(self, batch: Batch, taken: int) -> None:
        assert self.gone
        assert taken == 0

    async def ready(self) -> int:
        return maxsize

    def joined(self, channel: str, form: Form, start: Start, missed: Sequence[Frame]) -> None:
        assert not missed

    def broken(self, channel: str, position: Position) -> bool:
        raise AssertionError("these channels have no history")

    def send(self, message: Message) -> None:
        """Send to this client only. A real sender would wait until there is room."""
        if self.gone or not self.outbox.has_room:
            return
        size = self.outbox.size
        assert size < self.outbox.limit
        self.owed[None].append(message)
        self.direct += message.cost
        assert self.outbox.push(PLAIN.reply(message))
        assert self.outbox.size == size + message.cost

    def die(self) -> None:
        self.gone = True
        self.outbox.clear()
        if self.sending is not None:
            self.outbox.sent(self.sending)
        assert (len(self.outbox), self.outbox.size) == (0, 0)

    def _push(self, batch: Batch) -> None:
        outbox, limit = self.outbox, self.outbox.limit
        size = outbox.size
        dropped = outbox.dropped
        must_stay = self.direct + (self.sending.cost if self.sending else 0)
        accepted = outbox.push(batch)
        self.written += len(batch.messages)
        if outbox.policy == "disconnect":
            assert accepted == (size == 0 or size + batch.cost <= limit)
            self.gone = not accepted
            assert accepted or len(outbox) == 0
            return
        assert accepted
        if size + batch.cost > limit:
            self.promised.clear()
        elif outbox.policy == "drop_oldest":
            assert (outbox.size, outbox.dropped) == (size + batch.cost, dropped)
        if must_stay == 0 or must_stay + batch.cost <= limit:
            self.promised[batch.channel] = batch.messages[-1]
        assert outbox.size <= max(limit, must_stay, 0 if must_stay else batch.cost)

    # The socket

    def begin(self) -> bool:
        """Start to send the next batch, unless one is being sent already."""
        if self.sending is None:
            self.sending = self.outbox.take()
            if self.sending is not None and self.sending.channel is None:
                self.direct -= self.sending.cost
        return self.sending is not None

    def finish(self) -> Batch:
        """The socket takes the batch that is being sent."""
        assert self.sending is not None
        batch, self.sending = self.sending, None
        size = self.outbox.size
        self.outbox.sent(batch)
        assert self.outbox.size == size - batch.cost
        self.got[batch.channel].extend(batch.messages)
        return batch

    def take_all(self) -> None:
        """The socket takes everything."""
        size, waiting = self.outbox.size, len(self.outbox)
        sent: list[Batch] = []
        if self.sending is not None:
            sent.append(self.finish())
            waiting += 1
        late = len(sent)
        while self.begin():
            sent.append(self.finish())
        assert len(sent) == waiting
        assert sum(batch.cost for batch in sent) == size
        assert (len(self.outbox), self.outbox.size) == (0, 0)
        if self.outbox.policy == "latest":
            waited = [batch.channel for batch in sent[late:] if batch.channel is not None]
            assert len(waited) == len(set(waited))

    # Invariants

    def check_order(self) -> None:
        """No message came twice, out of order, or to a wrong client."""
        if self.failure is not None:
            raise self.failure
        for channel, got in self.got.items():
            owed = self.owed[channel]
            if self.outbox.policy == "disconnect" or channel is None:
                assert got == owed[: len(got)]
            else:
                assert is_subsequence(got, owed)

    def check_nothing_waits(self) -> None:
        """Everything that was written has arrived, except for the messages that the policy dropped."""
        self.check_order()
        assert self.got[None] == self.owed[None]
        arrived = sum(len(got) for channel, got in self.got.items() if channel is not None)
        assert arrived + self.outbox.dropped == self.written
        assert self.outbox.policy != "disconnect" or self.outbox.dropped == 0
        for channel, newest in self.promised.items():
            assert self.got[channel][-1:] == [newest]

    def check_everything_arrived(self) -> None:
        """Everything has arrived, once the feeds have nothing left to write."""
        self.check_nothing_waits()
        owed = sum(len(frames) for channel, frames in self.owed.items() if channel is not None)
        assert self.written == owed
        if self.outbox.policy == "disconnect":
            assert all(self.got[channel] == frames for channel, frames in self.owed.items())


def is_subsequence(some: Iterable[Message], of: Sequence[Message]) -> bool:
    rest = iter(of)
    return all(any(message is each for each in rest) for message in some)


class FanOut(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.loop = Loop()
        self.feeds = {channel: Feed(channel, self.loop.call_soon, no_repair) for channel in CHANNELS}
        self.clients = [
            Client(f"client {number}", policy, limit) for number, (policy, limit) in enumerate(CLIENTS)
        ]
        self.count = len(CLIENTS)
        self.frames: list[Frame] = []

    @initialize(
        outside=st.sets(st.tuples(clients, channels)), stalled=st.tuples(*[st.booleans() for _ in CLIENTS])
    )
    def begin(self, outside: set[tuple[int, str]], stalled: tuple[bool, ...]) -> None:
        for number, client in enumerate(self.clients):
            client.stalled = stalled[number]
            for channel in CHANNELS:
                if (number, channel) not in outside:
                    self.subscribe(number, channel)

    # The users

    @rule(each=messages, turn=st.booleans())
    def publish(self, each: list[tuple[str, int]], turn: bool) -> None:
        self._publish(each, None)
        if turn:
            self.turn()

    @rule(each=messages, excluded=clients, turn=st.booleans())
    def publish_to_others(self, each: list[tuple[str, int]], excluded: int, turn: bool) -> None:
        self._publish(each, self.clients[excluded].id)
        if turn:
            self.turn()

    def _publish(self, each: list[tuple[str, int]], exclude: str | None) -> None:
        for channel, size in each:
            frame = self.feeds[channel].publish(Publication(channel, bytes(size), "binary", exclude))
            assert frame is not None
            self.frames.append(frame)
            for client in self.clients:
                if channel in client.channels and client.id != exclude:
                    client.owed[channel].append(frame.encoded(PLAIN.codec))

    @rule(client=clients, channel=channels)
    def subscribe(self, client: int, channel: str) -> None:
        self.clients[client].channels.add(channel)
        self.feeds[channel].join(self.clients[client], PLAIN)

    @rule(client=clients, channel=channels)
    def unsubscribe(self, client: int, channel: str) -> None:
        self.clients[client].channels.discard(channel)
        self.feeds[channel].leave(self.clients[client])

    @rule(client=clients, size=sizes)
    def send(self, client: int, size: int) -> None:
        self.clients[client].send(WebSocketMessage("binary", bytes(size)))

    @rule(client=clients)
    def depart(self, client: int) -> None:
        """The handler ends, and another client connects."""
        leaving = self.clients[client]
        for channel in sorted(leaving.channels):
            self.unsubscribe(client, channel)
        if leaving.gone:
            leaving.check_order()
        else:
            leaving.take_all()
            leaving.check_everything_arrived()
        self.clients[client] = Client(f"client {self.count}", *CLIENTS[client])
        self.count += 1

    # The event loop and the sockets

    @rule()
    def turn(self) -> None:
        self.loop.turn()
        for client in self.clients:
            if client.gone:
                continue
            if client.stalled:
                client.begin()
            else:
                client.take_all()
                client.check_nothing_waits()

    @rule(client=clients)
    def stall(self, client: int) -> None:
        self.clients[client].stalled = True

    @rule(client=clients)
    def resume(self, client: int) -> None:
        resuming = self.clients[client]
        resuming.stalled = False
        if not resuming.gone:
            resuming.take_all()
            resuming.check_nothing_waits()

    @rule(client=clients)
    def take_one(self, client: int) -> None:
        taking = self.clients[client]
        if not taking.gone and taking.begin():
            taking.finish()
            taking.begin()

    @rule(client=clients, raises=st.booleans())
    def die(self, client: int, raises: bool) -> None:
        dying = self.clients[client]
        dying.raises = raises
        if not dying.gone:
            dying.die()

    # Invariants

    @invariant()
    def everything_is_in_order(self) -> None:
        for client in self.clients:
            client.check_order()
        for channel, feed in self.feeds.items():
            assert len(feed) == sum(channel in client.channels for client in self.clients)

    def teardown(self) -> None:
        self.loop.turn()
        for number in range(len(CLIENTS)):
            self.depart(number)
        for feed in self.feeds.values():
            assert len(feed) == 0
        # No feed keeps a frame that it has written: it is in the list, in the loop and in the call.
        assert all(sys.getrefcount(frame) == 3 for frame in self.frames)


@pytest.fixture(autouse=True)
def quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep the log lines about subscribers that raise out of the thousands of runs."""
    monkeypatch.setattr(logging.getLogger("hubbub.core.subscriber"), "disabled", True)


TestFanOut = FanOut.TestCase
TestFanOut.settings = settings(
    max_examples=600,
    stateful_step_count=30,
    deadline=None,
    derandomize="CI" in os.environ,
    report_multiple_bugs=False,
)
