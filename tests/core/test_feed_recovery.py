"""A feed in a channel with history: every run is contiguous, or its subscriber is notified that it is broken.

The machine plays the engine, the network between it and the feed, and the subscribers. Announcements of the
engine go into a network that drops, doubles, delays and reorders. Questions of the feed are answered late.
The engine can be restarted without its data, or with data that is older than its last announcements. The feed
begins somewhere in the life of the channel, and may have seen no publication when that happens.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from sys import maxsize

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from hubbub.core.feed import Feed
from hubbub.core.forms import Form
from hubbub.core.frames import Batch, Frame
from hubbub.core.publication import START, Position, Publication
from hubbub.core.subscriber import Start
from hubbub.exceptions import Unrecoverable
from hubbub.protocols.plain import PLAIN

KEPT = 8


class Engine:
    """The stream of one channel. Every publication has another payload."""

    def __init__(self, size: int = KEPT) -> None:
        self.size = size
        self.count = 0
        self.begin()

    def begin(self) -> None:
        self.count += 1
        self.epoch = f"e{self.count}"
        self.offset = 0
        self.kept: list[Publication] = []

    @property
    def top(self) -> Position:
        return Position(self.offset, self.epoch)

    @property
    def top_id(self) -> str:
        return self.kept[-1].id if self.kept else ""

    def publish(self) -> Publication:
        self.count += 1
        self.offset += 1
        publication = Publication(
            "chat", b"%d" % self.count, "text", None, f"id{self.count}", self.offset, self.epoch
        )
        self.kept = [*self.kept, publication][-self.size :]
        return publication

    def read(self, since: Position) -> tuple[list[Publication], Position]:
        if since != START and since.epoch != self.epoch:
            return [], self.top
        return [each for each in self.kept if each.offset > since.offset], self.top


class Subscriber:
    """A subscriber that counts: the publication after ``position`` comes next, unless its run is broken."""

    recovers_in_pieces = True

    def __init__(self, number: int, position: Position) -> None:
        self.id = f"subscriber{number}"
        self.position = position
        # Whether it has received publications that the engine has lost since.
        self.must_be_notified = False
        self.is_broken = False
        self.received: list[bytes] = []

    def write(self, batch: Batch) -> int:
        if not self.is_broken:
            self.received += [message.data for message in batch.messages]
        return len(batch)

    def write_rest(self, batch: Batch, taken: int) -> None:
        raise AssertionError("all of it had been taken")

    async def ready(self) -> int:
        return maxsize

    def joined(self, channel: str, form: Form, start: Start, missed: Sequence[Frame]) -> None:
        self.received += [frame.encoded(form.codec).data for frame in missed]

    def broken(self, channel: str, position: Position) -> bool:
        # As a connection does: it takes no more, and leaves in a while.
        self.is_broken = True
        return True


class Sentinel(Subscriber):
    """Records that the feed has notified its subscribers that their run is broken."""

    def __init__(self, on_broken: Callable[[], None]) -> None:
        super().__init__(0, START)
        self.on_broken = on_broken

    def broken(self, channel: str, position: Position) -> bool:
        self.on_broken()
        return True


class Recovery(RuleBasedStateMachine):
    @initialize(before=st.integers(0, KEPT + 3))
    def begin(self, before: int) -> None:
        self.engine = Engine()
        self.scheduled: list[Callable[[], None]] = []
        self.repairs: list[tuple[Sequence[Publication], Position] | None] = []
        # Whether the engine is yet to be asked where the channel stands.
        self.is_held = False
        self.network: list[Publication] = []
        self.subscribers: list[Subscriber] = []
        self.count = 0
        # Every publication in the order of its epoch, as the engine accepted it; an engine that is set back
        # continues from there with other ones.
        self.accepted: dict[str, list[bytes]] = {}
        self.was_set_back = False
        # Whether the feed stands where the engine has forgotten, and has not notified its subscribers yet.
        self.is_stale = False
        # The engine has forgotten the publication at which the feed could have seen that.
        self.is_blind = False
        for _ in range(before):
            self.accepted.setdefault(self.engine.epoch, []).append(self.engine.publish().data)
        self.feed = Feed("chat", self.scheduled.append, self.ask)
        self.feed.hold()
        self.feed.opened(self.engine.top, self.engine.top_id)
        self.feed.join(Sentinel(self.has_notified), PLAIN)

    def has_notified(self) -> None:
        self.is_stale = False

    # The loop and the engine

    def ask(self, feed: Feed) -> None:
        # The history is read now or later, before the answer; see read().
        self.repairs.append(None)

    @rule()
    def turn(self) -> None:
        scheduled, self.scheduled[:] = list(self.scheduled), []
        for callback in scheduled:
            callback()

    @precondition(lambda self: self.repairs and self.repairs[0] is None)
    @rule()
    def read(self) -> None:
        history, top = self.engine.read(self.feed.since)
        if self.feed.contradicts(history, top):
            self.engine.begin()
        offset, epoch = self.feed.position
        if epoch not in ("", self.engine.epoch):
            history, top = self.engine.kept[-1:], self.engine.top
        elif self.is_stale and not any(each.offset == offset for each in history):
            self.is_blind = True
        self.repairs[0] = history, top

    @precondition(lambda self: self.repairs and self.repairs[0] is not None)
    @rule()
    def answer(self) -> None:
        page = self.repairs.pop(0)
        assert page is not None
        self.feed.repaired(*page)

    @rule(count=st.integers(1, KEPT + 3), arrive=st.booleans())
    def publish(self, count: int, arrive: bool) -> None:
        for _ in range(count):
            publication = self.engine.publish()
            self.accepted.setdefault(publication.epoch, []).append(publication.data)
            if arrive:
                self.feed.publish(publication)
            else:
                self.network.append(publication)

    @rule()
    def remove_history(self) -> None:
        self.engine.begin()

    @rule()
    def restart_without_data(self) -> None:
        self.engine.begin()
        self.restart()

    @precondition(lambda self: len(self.engine.kept) > 1)
    @rule(lost=st.integers(1, KEPT - 1), missed=st.integers(0, KEPT))
    def set_back(self, lost: int, missed: int) -> None:
        """Restart from an older snapshot, with the same epoch.

        Offsets are given out a second time, some of them before this node is connected again.
        """
        lost = min(lost, len(self.engine.kept) - 1)
        self.engine.offset -= lost
        self.engine.kept = self.engine.kept[:-lost]
        del self.accepted[self.engine.epoch][-lost:]
        self.was_set_back = True
        if self.feed.position.epoch == self.engine.epoch and self.feed.position.offset > self.engine.offset:
            self.is_stale = True
            for subscriber in self.subscribers:
                subscriber.must_be_notified = True
        if missed:
            self.publish(missed, arrive=False)
        self.restart()

    def restart(self) -> None:
        self.network.clear()
        # Its connections are gone, so all questions are asked again.
        self.repairs = [None for _ in self.repairs]
        if not self.is_held:
            self.is_held = self.feed.hold()

    @precondition(lambda self: self.is_held)
    @rule()
    def compare_after_restart(self) -> None:
        self.is_held = False
        if self.feed.stands_at(self.engine.top, self.engine.top_id):
            self.feed.repaired((), self.engine.top)
        else:
            self.ask(self.feed)

    @precondition(lambda self: not self.feed.is_repairing)
    @rule()
    def compare(self) -> None:
        if not self.feed.stands_at(self.engine.top, self.engine.top_id):
            self.feed.verify()

    # The network

    @precondition(lambda self: self.network)
    @rule(data=st.data(), keep=st.booleans())
    def arrive(self, data: st.DataObject, keep: bool) -> None:
        index = data.draw(st.integers(0, len(self.network) - 1))
        publication = self.network[index]
        if not keep:
            del self.network[index]
        self.feed.publish(publication)

    @precondition(lambda self: self.network)
    @rule(data=st.data())
    def drop(self, data: st.DataObject) -> None:
        del self.network[data.draw(st.integers(0, len(self.network) - 1))]

    @rule()
    def check_the_tail(self) -> None:
        self.feed.verify()

    # The subscribers

    @rule()
    def join(self) -> None:
        self.count += 1
        subscriber = Subscriber(self.count, self.feed.position)
        subscriber.must_be_notified = self.is_stale
        self.feed.join(subscriber, PLAIN)
        self.subscribers.append(subscriber)

    @precondition(lambda self: self.subscribers)
    @rule(data=st.data())
    def leave_and_resume(self, data: st.DataObject) -> None:
        subscriber = self.subscribers.pop(data.draw(st.integers(0, len(self.subscribers) - 1)))
        self.feed.leave(subscriber)
        if not subscriber.is_broken:
            self.resume(self.reached(subscriber))

    @rule(offset=st.integers(0, 30))
    def resume_from_somewhere(self, offset: int) -> None:
        self.resume(Position(offset, self.engine.epoch) if offset else START)

    def resume(self, since: Position) -> None:
        self.count += 1
        subscriber = Subscriber(self.count, since)
        subscriber.must_be_notified = self.is_stale
        try:
            resumed = self.resume_from(subscriber, since) is not None
            if not resumed and not self.feed.is_repairing:
                history, top = self.engine.read(since)
                self.feed.remember(history, top)
                frames = [Frame(each) for each in history]
                resumed = self.resume_from(subscriber, since, frames) == self.feed.position
        except Unrecoverable:
            resumed = False
        if resumed:
            if subscriber.position == START:
                subscriber.position = Position(0, self.feed.position.epoch)
            self.subscribers.append(subscriber)
        else:
            assert subscriber.received == []

    def resume_from(
        self, subscriber: Subscriber, since: Position, history: Sequence[Frame] = ()
    ) -> Position | None:
        return self.feed.resume(subscriber, since, PLAIN, history, start=Start(since, recovered=True))

    # Invariants

    def reached(self, subscriber: Subscriber) -> Position:
        return Position(subscriber.position.offset + len(subscriber.received), subscriber.position.epoch)

    @invariant()
    def a_restart_from_an_older_snapshot_is_noticed(self) -> None:
        # Publications wait from the restart on until that is known.
        if hasattr(self, "feed") and not self.feed.is_repairing and not self.is_blind:
            assert not self.is_stale

    @invariant()
    def every_run_is_contiguous(self) -> None:
        for subscriber in getattr(self, "subscribers", ()):
            offset, epoch = subscriber.position
            run = self.accepted.get(epoch, [])[offset : offset + len(subscriber.received)]
            # After a restart from an older snapshot, the past is not the one that the subscriber has
            # received.
            if not self.was_set_back:
                assert subscriber.received == run

    def teardown(self) -> None:
        """Once the network is calm, every subscriber whose run is not broken has everything."""
        if not hasattr(self, "feed"):
            return
        for _ in range(20):
            if self.is_held:
                self.compare_after_restart()
            self.feed.verify()
            while self.repairs:
                if self.repairs[0] is None:
                    self.read()
                self.answer()
            self.turn()
        assert self.feed.position == self.engine.top
        for subscriber in self.subscribers:
            if subscriber.is_broken:
                continue
            assert self.reached(subscriber).epoch in (self.engine.epoch, "")
            assert self.reached(subscriber).offset == self.engine.offset
            if not self.is_blind:
                assert not subscriber.must_be_notified
                assert (
                    subscriber.received
                    == self.accepted.get(self.engine.epoch, [])[subscriber.position.offset :]
                )


TestRecovery = Recovery.TestCase
TestRecovery.settings = settings(
    max_examples=int(os.environ.get("HUBBUB_TEST_EXAMPLES", "100")), stateful_step_count=60, deadline=None
)


def feed_at(position: Position) -> tuple[Feed, list[Feed], list[Callable[[], None]]]:
    asked: list[Feed] = []
    callbacks: list[Callable[[], None]] = []
    return Feed("chat", callbacks.append, asked.append, position), asked, callbacks


def resume(feed: Feed, subscriber: Subscriber) -> Position | None:
    start = Start(subscriber.position, recovered=True)
    return feed.resume(subscriber, subscriber.position, PLAIN, start=start)


def test_many_clients_that_missed_the_same_publications_are_served_from_memory() -> None:
    engine = Engine()
    feed, asked, _ = feed_at(engine.top)
    for _ in range(5):
        feed.publish(engine.publish())
    subscribers = [Subscriber(number, Position(2, engine.epoch)) for number in range(5000)]
    for subscriber in subscribers:
        assert resume(feed, subscriber)
    assert {tuple(subscriber.received) for subscriber in subscribers} == {(b"4", b"5", b"6")}
    assert asked == []


def test_history_that_was_read_for_one_client_is_kept_for_the_next() -> None:
    engine = Engine()
    for _ in range(5):
        engine.publish()
    feed, _, _ = feed_at(engine.top)
    since = Position(1, engine.epoch)
    first, second = Subscriber(1, since), Subscriber(2, since)
    assert resume(feed, first) is None
    history, top = engine.read(since)
    feed.remember(history, top)
    assert resume(feed, first)
    assert resume(feed, second)
    assert first.received == second.received == [b"3", b"4", b"5", b"6"]


def test_an_engine_that_was_set_back_is_detected_even_when_it_has_caught_up_again() -> None:
    engine = Engine()
    feed, asked, _ = feed_at(engine.top)
    for _ in range(3):
        feed.publish(engine.publish())
    subscriber = Subscriber(1, feed.position)
    feed.join(subscriber, PLAIN)
    engine.offset, engine.kept = 1, engine.kept[:1]
    for _ in range(4):
        engine.publish()
    feed.verify()
    assert asked == [feed]
    feed.repaired(*engine.read(feed.since))
    assert subscriber.is_broken
    assert feed.position == engine.top


@pytest.mark.parametrize("since", [Position(9, "e1"), Position(1, "another")])
def test_a_position_that_never_existed_is_unrecoverable(since: Position) -> None:
    engine = Engine()
    feed, _, _ = feed_at(engine.top)
    feed.publish(engine.publish())
    with pytest.raises(Unrecoverable, match="continue from offset 1"):
        resume(feed, Subscriber(1, since))


def test_more_than_may_wait_for_a_repair_is_read_again_afterwards() -> None:
    engine = Engine(size=2000)
    feed, asked, callbacks = feed_at(engine.top)
    subscriber = Subscriber(1, feed.position)
    feed.join(subscriber, PLAIN)
    engine.publish()
    feed.publish(engine.publish())
    page = engine.read(feed.since)
    for _ in range(1005):
        feed.publish(engine.publish())
    feed.repaired(*page)
    # The tail that did not fit is read, though no other publication arrives.
    assert len(asked) == 2
    assert feed.is_repairing
    feed.repaired(*engine.read(feed.since))
    callbacks.pop()()
    assert len(subscriber.received) == 1007
    assert feed.position == engine.top


def test_a_duplicate_is_dropped_without_a_repair() -> None:
    engine = Engine()
    feed, asked, callbacks = feed_at(engine.top)
    subscriber = Subscriber(1, feed.position)
    feed.join(subscriber, PLAIN)
    publication = engine.publish()
    for _ in range(3):
        feed.publish(publication)
    callbacks.pop()()
    assert subscriber.received == [publication.data]
    assert asked == []


def test_the_next_offset_of_another_epoch_is_not_the_next() -> None:
    engine = Engine()
    feed, asked, _ = feed_at(engine.top)
    subscriber = Subscriber(1, feed.position)
    feed.join(subscriber, PLAIN)
    feed.publish(engine.publish())
    engine.begin()
    engine.publish()
    feed.publish(engine.publish())
    assert asked == [feed]
    feed.repaired(*engine.read(feed.since))
    assert subscriber.is_broken


def test_a_gap_among_publications_that_arrived_during_a_repair_is_repaired_next() -> None:
    engine = Engine()
    feed, asked, callbacks = feed_at(engine.top)
    subscriber = Subscriber(1, feed.position)
    feed.join(subscriber, PLAIN)
    engine.publish()
    feed.publish(engine.publish())
    page = engine.read(feed.since)
    engine.publish()
    feed.publish(engine.publish())
    feed.repaired(*page)
    assert len(asked) == 2
    feed.repaired(*engine.read(feed.since))
    callbacks.pop()()
    assert len(subscriber.received) == 4
    assert not subscriber.is_broken


@pytest.mark.parametrize("learned", ["at subscribe", "from a repair", "for a client", "by comparing"])
def test_a_feed_that_has_seen_no_publication_detects_that_the_engine_was_set_back(learned: str) -> None:
    engine = Engine()
    for _ in range(3):
        engine.publish()
    feed, asked, _ = feed_at(engine.top)
    if learned == "at subscribe":
        feed.hold()
        feed.opened(engine.top, engine.top_id)
    elif learned == "from a repair":
        feed.verify()
        feed.repaired(*engine.read(feed.since))
        asked.clear()
    elif learned == "for a client":
        feed.remember(*engine.read(Position(1, engine.epoch)))
    else:
        assert feed.stands_at(engine.top, engine.top_id)
    subscriber = Subscriber(1, feed.position)
    feed.join(subscriber, PLAIN)
    engine.offset, engine.kept = 2, engine.kept[:2]
    for _ in range(2):
        engine.publish()
    assert not feed.stands_at(engine.top, engine.top_id)
    feed.verify()
    assert asked == [feed]
    assert feed.contradicts(*engine.read(feed.since))
    feed.repaired(*engine.read(feed.since))
    assert subscriber.is_broken


def test_a_feed_whose_run_is_broken_knows_the_newest_publication() -> None:
    engine = Engine()
    feed, _, _ = feed_at(engine.top)
    feed.publish(engine.publish())
    engine.begin()
    newest = engine.publish()
    feed.publish(newest)
    feed.repaired([newest], engine.top)
    assert (feed.position, feed.last_id) == (newest.position, newest.id)


def test_another_publication_with_the_same_offset_is_no_duplicate() -> None:
    engine = Engine()
    feed, asked, _ = feed_at(engine.top)
    feed.publish(engine.publish())
    engine.offset, engine.kept = 0, []
    feed.publish(engine.publish())
    assert asked == [feed]


def test_a_publication_without_a_position_reveals_that_the_engine_has_lost_the_history() -> None:
    engine = Engine()
    feed, asked, callbacks = feed_at(engine.top)
    subscriber = Subscriber(1, feed.position)
    feed.join(subscriber, PLAIN)
    feed.publish(Publication("chat", b"lost", "text"))
    # There is no other chance to deliver it.
    callbacks.pop()()
    assert subscriber.received == [b"lost"]
    assert asked == [feed]
    feed.repaired((), START)
    assert subscriber.is_broken


def test_a_history_that_is_lost_during_a_repair_is_detected() -> None:
    engine = Engine()
    feed, asked, _ = feed_at(engine.top)
    subscriber = Subscriber(1, feed.position)
    feed.join(subscriber, PLAIN)
    feed.verify()
    page = engine.read(feed.since)
    feed.publish(Publication("chat", b"lost", "text"))
    feed.repaired(*page)
    assert asked == [feed, feed]
    feed.repaired((), START)
    assert subscriber.is_broken


def test_a_verification_that_is_requested_during_a_repair_follows_it() -> None:
    engine = Engine()
    feed, asked, _ = feed_at(engine.top)
    feed.verify()
    page = engine.read(feed.since)
    engine.publish()
    assert not feed.hold()
    feed.repaired(*page)
    assert asked == [feed, feed]
    feed.repaired(*engine.read(feed.since))
    assert feed.position == engine.top
    assert not feed.is_repairing


def test_publications_that_were_removed_are_not_handed_to_clients_that_resume() -> None:
    engine = Engine()
    feed, asked, _ = feed_at(engine.top)
    for _ in range(3):
        feed.publish(engine.publish())
    since = Position(1, engine.epoch)
    before = engine.read(feed.since)
    feed.forget()
    assert asked == [feed]
    assert resume(feed, Subscriber(1, since)) is None
    # A read from before the removal does not bring them back.
    feed.forget()
    feed.publish(Publication("chat", b"4", "text", None, "id4", 4, engine.epoch))
    feed.repaired(*before)
    third = Position(3, engine.epoch)
    assert resume(feed, Subscriber(1, third)) is None
    engine.begin()
    feed.repaired((), engine.top)
    with pytest.raises(Unrecoverable):
        resume(feed, Subscriber(1, since))
