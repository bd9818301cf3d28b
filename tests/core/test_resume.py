"""Subscribers that join a feed in pieces, or with a single reply, while anything may happen to it.

This continues the machine of ``test_feed_recovery``: its engine loses, doubles, forgets and is set back.
Clients join its feed that take missed publications piece by piece, with any of that in between, and sessions
that take them at once. Envelopes, ids and replies must be true.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import invariant, precondition, rule

from hubbub.core.feed import Feed
from hubbub.core.forms import Form
from hubbub.core.frames import FRAME_OVERHEAD, Batch, Frame, Message
from hubbub.core.publication import START, Position, Publication
from hubbub.core.resume import Resume
from hubbub.core.subscriber import Start
from hubbub.exceptions import Unrecoverable
from hubbub.protocols.envelope import ENVELOPE
from hubbub.protocols.plain import PLAIN
from tests.core import test_feed_recovery
from tests.core.test_feed_recovery import Engine, Recovery, Subscriber


class Client(Subscriber):
    """A subscriber that keeps ids. Its ``position`` is the one in the opening that it got."""

    def __init__(self, number: int) -> None:
        super().__init__(number, START)
        self.opening: dict[str, Any] = {}
        self.ids: list[Position] = []
        #: Messages that must not come in this state; a feed would only log an exception of ``write``.
        self.wrong: list[dict[str, Any]] = []

    def write(self, batch: Batch) -> int:
        if not self.is_broken:
            self.take(*batch.messages)
        return len(batch)

    def joined(self, channel: str, form: Form, start: Start, missed: Sequence[Frame]) -> None:
        # As a connection does.
        opening = form.opening(channel, start)
        assert opening is not None
        self.take(opening, *(frame.encoded(form.codec) for frame in missed))

    def take(self, *messages: Message) -> None:
        for message in messages:
            self.receive(json.loads(message.data))

    def receive(self, message: dict[str, Any]) -> None:
        position = Position.parse(message["id"])
        if message["type"] == "subscribed" and not self.opening:
            self.opening, self.position = message, position
        elif message["type"] == "publication" and self.opening and message["channel"] == "chat":
            self.ids.append(position)
            self.received.append(message["data"].encode())
        else:
            self.wrong.append(message)


class Session(Subscriber):
    """A protocol session: it writes one reply, with all missed publications in it, or has not recovered.

    When its run is broken it forgets the channel at once, and nothing of the channel may follow.
    """

    recovers_in_pieces = False

    def __init__(self, number: int) -> None:
        super().__init__(number, START)
        self.reply: Start | None = None
        #: Whether its run is broken.
        self.has_ended = False
        self.ids: list[Position] = []
        #: Calls that must not come in this state; a feed would only log an exception.
        self.wrong: list[str] = []

    def write(self, batch: Batch) -> int:
        if self.reply is None or self.has_ended:
            self.wrong.append("write")
        for message in batch.messages:
            assert message.publication is not None
            self.take(message.publication)
        return len(batch)

    def joined(self, channel: str, form: Form, start: Start, missed: Sequence[Frame]) -> None:
        if self.reply is not None:
            self.wrong.append("joined")
        if missed and start.recovered is False:
            self.wrong.append("missed publications although it has not recovered")
        self.reply, self.position = start, start.position
        for frame in missed:
            self.take(frame.publication)

    def broken(self, channel: str, position: Position) -> bool:
        if self.reply is None or self.has_ended:
            self.wrong.append("broken")
        self.has_ended = self.is_broken = True
        return False

    def take(self, publication: Publication) -> None:
        self.ids.append(publication.position)
        self.received.append(publication.data)


class Arrival:
    """A client that is joining, and the read that it waits for."""

    def __init__(self, client: Client | Session, resume: Resume) -> None:
        self.client = client
        self.resume = resume
        self.wanted: Position | None = None
        self.page: tuple[Sequence[Publication], Position] | None = None


class Resuming(Recovery):
    def __init__(self) -> None:
        super().__init__()
        self.arrivals: list[Arrival] = []

    @rule(history=st.integers(0, 12))
    def arrive_new(self, history: int) -> None:
        self.begin_resume(None, history)

    @rule(offset=st.integers(0, 30))
    def arrive_from_somewhere(self, offset: int) -> None:
        self.begin_resume(Position(offset, self.engine.epoch) if offset else START, 0)

    @rule(offset=st.integers(0, 30), history=st.integers(0, 12), is_new=st.booleans())
    def session_arrives(self, offset: int, history: int, is_new: bool) -> None:
        since = Position(offset, self.engine.epoch) if offset else START
        self.begin_resume(None if is_new else since, history if is_new else 0, is_session=True)

    @precondition(lambda self: any(isinstance(each, Client | Session) for each in self.subscribers))
    @rule(data=st.data())
    def arrive_again(self, data: st.DataObject) -> None:
        clients = [each for each in self.subscribers if isinstance(each, Client | Session)]
        subscriber = data.draw(st.sampled_from(clients))
        self.subscribers.remove(subscriber)
        self.feed.leave(subscriber)
        self.begin_resume(self.reached(subscriber), 0, is_session=isinstance(subscriber, Session))

    def begin_resume(self, since: Position | None, history: int, *, is_session: bool = False) -> None:
        self.count += 1
        client = Session(self.count) if is_session else Client(self.count)
        self.arrivals.append(Arrival(client, Resume(self.feed, client, ENVELOPE, since, history)))

    @precondition(lambda self: self.arrivals)
    @rule(data=st.data(), limit=st.integers(1, 1500))
    def step(self, data: st.DataObject, limit: int) -> None:
        self.step_once(data.draw(st.sampled_from(self.arrivals)), limit)

    def step_once(self, arrival: Arrival, limit: int) -> None:
        if arrival.wanted is not None:
            return
        arrival.wanted = arrival.resume.step(limit)
        if isinstance(arrival.client, Session):
            # One reply, in the same step in which it joins.
            assert (arrival.client.reply is not None) == arrival.resume.is_complete
        if arrival.resume.is_complete:
            self.arrivals.remove(arrival)
            self.subscribers.append(arrival.client)
            if not arrival.client.is_broken:
                assert arrival.resume.position == self.feed.position == self.reached(arrival.client)

    @precondition(lambda self: any(each.wanted is not None for each in self.arrivals))
    @rule(data=st.data(), limit=st.integers(1, 5))
    def fetch(self, data: st.DataObject, limit: int) -> None:
        waiting = [each for each in self.arrivals if each.wanted is not None]
        arrival = data.draw(st.sampled_from(waiting))
        assert arrival.wanted is not None
        history, top = self.engine.read(arrival.wanted)
        arrival.page = history[:limit], top

    @precondition(lambda self: any(each.page is not None for each in self.arrivals))
    @rule(data=st.data())
    def hand_in(self, data: st.DataObject) -> None:
        arrival = data.draw(st.sampled_from([each for each in self.arrivals if each.page is not None]))
        assert arrival.page is not None
        (history, top), arrival.page = arrival.page, None
        if self.feed.is_repairing:
            return
        self.feed.remember(history, top)
        if not self.feed.is_repairing:
            arrival.resume.take([Frame(each) for each in history])
            arrival.wanted = None

    @invariant()
    def only_sessions_whose_run_is_broken_are_dropped(self) -> None:
        if hasattr(self, "feed"):
            dropped = sum(isinstance(each, Session) and each.has_ended for each in self.subscribers)
            # The sentinel is in the feed as well.
            assert len(self.feed) == len(self.subscribers) + 1 - dropped

    @rule(data=st.data())
    def give_up(self, data: st.DataObject) -> None:
        if self.arrivals:
            self.arrivals.remove(data.draw(st.sampled_from(self.arrivals)))

    @invariant()
    def ids_are_contiguous_and_true(self) -> None:
        clients = [each for each in self.subscribers if isinstance(each, Client | Session)]
        for client in [*clients, *(each.client for each in self.arrivals)]:
            assert client.wrong == []
            offset, epoch = client.position
            assert client.ids == [
                Position(offset + number, epoch) for number, _ in enumerate(client.received, 1)
            ]
            run = self.accepted.get(epoch, [])[offset : offset + len(client.received)]
            if not self.was_set_back:
                assert client.received == run

    def teardown(self) -> None:
        for _ in range(500):
            if not self.arrivals:
                break
            if self.is_held:
                self.compare_after_restart()
            while self.repairs:
                if self.repairs[0] is None:
                    self.read()
                self.answer()
            for arrival in list(self.arrivals):
                self.step_once(arrival, 1000)
                if arrival.wanted is not None:
                    history, top = self.engine.read(arrival.wanted)
                    self.feed.remember(history[:4], top)
                    if not self.feed.is_repairing:
                        arrival.resume.take([Frame(each) for each in history[:4]])
                        arrival.wanted = None
        assert not self.arrivals, "every client has joined, or was notified"
        super().teardown()


TestResuming = Resuming.TestCase
TestResuming.settings = test_feed_recovery.TestRecovery.settings


@pytest.fixture
def engine() -> Engine:
    return Engine(size=100)


@pytest.fixture
def feed(engine: Engine) -> Feed:
    """A feed of a channel with ten publications, none of which it has seen."""
    for _ in range(10):
        engine.publish()
    return Feed("chat", lambda callback: None, lambda feed: None, engine.top)


class Plain(Subscriber):
    def __init__(self, number: int = 1) -> None:
        super().__init__(number, START)


def read(engine: Engine, feed: Feed, resume: Resume, after: Position, limit: int) -> None:
    history, top = engine.read(after)
    feed.remember(history[:limit], top)
    resume.take([Frame(each) for each in history[:limit]])


def test_missed_publications_go_out_in_pieces_and_the_last_one_joins(engine: Engine, feed: Feed) -> None:
    subscriber = Plain()
    resume = Resume(feed, subscriber, PLAIN, Position(4, engine.epoch), 0)
    after = resume.step(600)
    assert after == Position(4, engine.epoch)
    read(engine, feed, resume, after, 100)
    sizes = []
    while not resume.is_complete:
        before = len(subscriber.received)
        assert resume.step(600) is None
        sizes.append(len(subscriber.received) - before)
        assert len(feed) == resume.is_complete
    assert sizes == [2, 2, 2]
    feed.publish(engine.publish())
    feed.flush()
    assert subscriber.received == [each.data for each in engine.kept[4:]]


def test_a_piece_is_one_publication_at_least(engine: Engine, feed: Feed) -> None:
    subscriber = Plain()
    resume = Resume(feed, subscriber, PLAIN, Position(8, engine.epoch), 0)
    read(engine, feed, resume, resume.step(1) or START, 100)
    resume.step(1)
    assert len(subscriber.received) == 1


def test_a_publication_between_two_pieces_comes_once(engine: Engine, feed: Feed) -> None:
    subscriber = Plain()
    resume = Resume(feed, subscriber, PLAIN, Position(8, engine.epoch), 0)
    read(engine, feed, resume, resume.step(1) or START, 100)
    while not resume.is_complete:
        resume.step(1)
        if engine.offset < 14:
            feed.publish(engine.publish())
    feed.flush()
    assert subscriber.received == [each.data for each in engine.kept[8:]]


def test_history_that_is_trimmed_before_the_first_piece_is_unrecoverable(engine: Engine, feed: Feed) -> None:
    subscriber = Plain()
    resume = Resume(feed, subscriber, PLAIN, Position(4, engine.epoch), 0)
    after = resume.step(1000)
    engine.kept = engine.kept[-2:]
    read(engine, feed, resume, after or START, 100)
    with pytest.raises(Unrecoverable):
        resume.step(1000)
    assert subscriber.received == []
    assert len(feed) == 0


def test_history_that_is_trimmed_after_the_first_piece_breaks_the_run(engine: Engine, feed: Feed) -> None:
    subscriber = Plain()
    resume = Resume(feed, subscriber, PLAIN, Position(4, engine.epoch), 0)
    read(engine, feed, resume, resume.step(1000) or START, 2)
    assert resume.step(1000) is None
    assert not resume.is_complete
    after = resume.step(1000)
    engine.kept = engine.kept[-2:]
    read(engine, feed, resume, after or START, 100)
    resume.step(1000)
    # Like a subscriber that has joined: it is notified, and leaves in a while.
    assert subscriber.is_broken
    assert resume.is_complete
    assert len(feed) == 1
    assert subscriber.received == [b"6", b"7"]


def test_a_new_epoch_after_the_first_piece_breaks_the_run(engine: Engine, feed: Feed) -> None:
    subscriber = Plain()
    resume = Resume(feed, subscriber, PLAIN, Position(4, engine.epoch), 0)
    read(engine, feed, resume, resume.step(1000) or START, 2)
    resume.step(1000)
    engine.begin()
    feed.repaired(*engine.read(feed.since))
    resume.step(1000)
    assert subscriber.is_broken


@pytest.mark.parametrize("since", [Position(4, "another"), Position(99, "e1")])
def test_a_client_with_envelopes_is_sent_that_it_has_not_recovered(
    engine: Engine, feed: Feed, since: Position
) -> None:
    client = Client(1)
    resume = Resume(feed, client, ENVELOPE, since, 0)
    if (after := resume.step(1000)) is not None:
        # The client may have been on a node that was further on.
        read(engine, feed, resume, after, 100)
        resume.step(1000)
    assert resume.is_complete
    assert client.opening == {
        "type": "subscribed",
        "channel": "chat",
        "id": str(engine.top),
        "recovered": False,
    }
    feed.publish(engine.publish())
    feed.flush()
    assert client.ids == [engine.top]


def test_publications_that_exclude_the_subscriber_are_left_out(engine: Engine, feed: Feed) -> None:
    subscriber = Plain()
    top = feed.position
    for exclude in (subscriber.id, None, "another", subscriber.id):
        feed.publish(Publication("chat", b"x", "text", exclude, "id", engine.offset + 1, engine.epoch))
        engine.publish()
    resume = Resume(feed, subscriber, PLAIN, top, 0)
    assert resume.step(10_000) is None
    assert resume.is_complete
    assert resume.position == engine.top
    assert subscriber.received == [b"x", b"x"]


def test_a_client_that_is_far_ahead_of_a_node_breaks_no_run(engine: Engine, feed: Feed) -> None:
    """The history does not lead from the node to the client: the rest may be on its way."""
    other = Plain()
    feed.join(other, PLAIN)
    announced = [engine.publish() for _ in range(20)]
    engine.kept = engine.kept[-5:]
    resume = Resume(feed, Plain(2), PLAIN, engine.top, 0)
    after = resume.step(1000)
    assert after == feed.position
    read(engine, feed, resume, after, 16)
    assert not feed.is_repairing
    with pytest.raises(Unrecoverable):
        resume.step(1000)
    for publication in announced:
        feed.publish(publication)
    feed.flush()
    assert len(other.received) == 20
    assert not other.is_broken


def test_a_position_that_never_existed_is_detected_with_one_read(engine: Engine, feed: Feed) -> None:
    """However much is published, so that the feed is further on after each read."""
    resume = Resume(feed, Plain(), PLAIN, Position(10**15, engine.epoch), 0)
    after = resume.step(1000)
    assert after is not None
    history, top = engine.read(after)
    feed.publish(engine.publish())
    resume.take([Frame(each) for each in history], top)
    with pytest.raises(Unrecoverable):
        resume.step(1000)


# Sessions, which are handed everything at once


def session_joins(
    engine: Engine, feed: Feed, resume: Resume, limit: int, page: int = 100, steps: int = 50
) -> int:
    """Read ``page`` publications at a time until the session has joined. Returns the number of reads."""
    for number in range(steps):
        after = resume.step(limit)
        if resume.is_complete:
            return number
        assert after is not None
        read(engine, feed, resume, after, page)
    raise AssertionError("has not joined")


def cost_of(engine: Engine, count: int) -> int:
    return sum(Frame(each).encoded(PLAIN.codec).cost for each in engine.kept[-count:])


@pytest.mark.parametrize("page", [1, 2, 100])
def test_a_session_gets_all_missed_publications_with_its_reply(engine: Engine, feed: Feed, page: int) -> None:
    since = Position(4, engine.epoch)
    session = Session(1)
    resume = Resume(feed, session, PLAIN, since, 0)
    session_joins(engine, feed, resume, cost_of(engine, 6), page)
    assert session.reply == Start(since, recovered=True)
    assert session.received == [each.data for each in engine.kept[4:]]
    assert resume.position == engine.top
    feed.publish(engine.publish())
    feed.flush()
    assert session.received == [each.data for each in engine.kept[4:]]
    assert session.wrong == []


@pytest.mark.parametrize("page", [1, 100])
def test_a_session_has_not_recovered_if_the_missed_publications_do_not_fit(
    engine: Engine, feed: Feed, page: int
) -> None:
    session = Session(1)
    resume = Resume(feed, session, ENVELOPE, Position(4, engine.epoch), 0)
    limit = sum(Frame(each).encoded(ENVELOPE.codec).cost for each in engine.kept[-6:]) - 1
    reads = session_joins(engine, feed, resume, limit, page)
    # It does not read on once that is known.
    assert reads <= 6
    assert session.reply == Start(engine.top, recovered=False)
    assert session.received == []
    feed.publish(engine.publish())
    feed.flush()
    assert session.ids == [engine.top]
    assert session.wrong == []


def test_a_session_whose_form_cannot_report_that_does_not_join(engine: Engine, feed: Feed) -> None:
    session = Session(1)
    resume = Resume(feed, session, PLAIN, Position(4, engine.epoch), 0)
    with pytest.raises(Unrecoverable):
        session_joins(engine, feed, resume, cost_of(engine, 6) - 1)
    assert session.reply is None
    assert len(feed) == 0


def test_a_new_session_gets_the_last_publications_that_fit(engine: Engine, feed: Feed) -> None:
    session = Session(1)
    resume = Resume(feed, session, PLAIN, None, 8)
    session_joins(engine, feed, resume, cost_of(engine, 3), page=2)
    assert session.reply == Start(Position(7, engine.epoch), recovered=None)
    assert session.ids == [each.position for each in engine.kept[7:]]


def test_publications_that_exclude_a_session_take_no_room(engine: Engine, feed: Feed) -> None:
    session, top = Session(1), feed.position
    for exclude in (session.id, None, session.id):
        feed.publish(Publication("chat", b"x" * 100, "text", exclude, "id", engine.offset + 1, engine.epoch))
        engine.publish()
    resume = Resume(feed, session, PLAIN, top, 0)
    assert resume.step(100 + FRAME_OVERHEAD) is None
    assert resume.is_complete
    assert session.reply == Start(top, recovered=True)
    assert session.ids == [Position(top.offset + 2, engine.epoch)]


def test_a_session_that_cannot_write_its_reply_does_not_join(engine: Engine, feed: Feed) -> None:
    class Failing(Session):
        def joined(self, channel: str, form: Form, start: Start, missed: Sequence[Frame]) -> None:
            raise RuntimeError("no reply")

    with pytest.raises(RuntimeError, match="no reply"):
        Resume(feed, Failing(1), PLAIN, None, 0).step(1000)
    assert len(feed) == 0


def test_a_subscriber_that_does_not_stay_after_a_break_between_two_pieces_does_not_join(
    engine: Engine, feed: Feed
) -> None:
    class Leaving(Plain):
        def broken(self, channel: str, position: Position) -> bool:
            super().broken(channel, position)
            return False

    subscriber = Leaving()
    resume = Resume(feed, subscriber, PLAIN, Position(4, engine.epoch), 0)
    read(engine, feed, resume, resume.step(1000) or START, 2)
    resume.step(1000)
    engine.begin()
    feed.repaired(*engine.read(feed.since))
    resume.step(1000)
    assert subscriber.is_broken
    assert resume.is_complete
    assert len(feed) == 0
