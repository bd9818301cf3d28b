"""A feed in a channel with history: whatever the engine loses, doubles, mixes up or forgets, each member gets
a contiguous run, or is told that the run is broken.

The machine plays the engine, the network between it and the feed, and the members. What the engine announces
goes into a network that drops, doubles, delays and reorders. What the feed asks for is answered late. The
engine can be restarted without its data, or with data that is older than what it had announced.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from sys import maxsize

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from hubbub.core.feed import Feed, frame_of
from hubbub.core.frames import Batch
from hubbub.core.publication import START, Position, Publication
from hubbub.exceptions import Unrecoverable

KEPT = 8


class Engine:
    """One channel's stream. Every publication that ever was has another payload."""

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


class Member:
    """Someone in the channel, who counts: after ``position`` comes the next, unless told otherwise."""

    def __init__(self, number: int, position: Position) -> None:
        self.id = f"member{number}"
        self.position = position
        self.is_broken = False
        self.received: list[bytes] = []

    def write(self, batch: Batch) -> int:
        if not self.is_broken:
            self.received += [frame.data for frame in batch.frames]
        return len(batch)

    def write_rest(self, batch: Batch, taken: int) -> None:
        raise AssertionError("all of it had been taken")

    async def ready(self) -> int:
        return maxsize

    def broken(self, channel: str, position: Position) -> None:
        # As a connection does: it takes nothing more, and leaves in a while.
        self.is_broken = True


class Recovery(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.engine = Engine()
        self.asked: list[Callable[[], None]] = []
        self.repairs: list[tuple[Sequence[Publication], Position] | None] = []
        self.network: list[Publication] = []
        self.members: list[Member] = []
        self.count = 0
        # Every publication in the order of its epoch, as the engine accepted it; an engine that is set back
        # goes on from there with other ones.
        self.accepted: dict[str, list[bytes]] = {}
        self.was_set_back = False
        self.feed = Feed("chat", self.asked.append, self.ask, self.engine.top)

    # The loop and the engine

    def ask(self, feed: Feed) -> None:
        # What is read is read now or later, before it is answered; see read().
        self.repairs.append(None)

    @rule()
    def turn(self) -> None:
        asked, self.asked[:] = list(self.asked), []
        for callback in asked:
            callback()

    @precondition(lambda self: self.repairs and self.repairs[0] is None)
    @rule()
    def read(self) -> None:
        self.repairs[0] = self.engine.read(self.feed.since)

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
        self.network.clear()
        self.feed.verify()

    @precondition(lambda self: self.engine.kept)
    @rule(lost=st.integers(1, KEPT))
    def set_back(self, lost: int) -> None:
        """A restart from an older snapshot: the same epoch, and offsets that are given out again."""
        lost = min(lost, len(self.engine.kept))
        self.engine.offset -= lost
        self.engine.kept = self.engine.kept[:-lost]
        del self.accepted[self.engine.epoch][-lost:]
        self.was_set_back = True
        self.network.clear()
        # Its connections are gone, so what was asked is asked again.
        self.repairs = [None for _ in self.repairs]
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

    # The members

    @rule()
    def join(self) -> None:
        self.count += 1
        member = Member(self.count, self.feed.position)
        self.feed.join(member)
        self.members.append(member)

    @precondition(lambda self: self.members)
    @rule(data=st.data())
    def leave_and_come_back(self, data: st.DataObject) -> None:
        member = self.members.pop(data.draw(st.integers(0, len(self.members) - 1)))
        self.feed.leave(member)
        if not member.is_broken:
            self.resume(self.reached(member))

    @rule(offset=st.integers(0, 30))
    def come_from_somewhere(self, offset: int) -> None:
        self.resume(Position(offset, self.engine.epoch) if offset else START)

    def resume(self, since: Position) -> None:
        self.count += 1
        member = Member(self.count, since)
        try:
            resumed = self.feed.resume(member, since) is not None
            if not resumed and not self.feed.is_repairing:
                history, top = self.engine.read(since)
                self.feed.remember(history, top)
                frames = [frame_of(each) for each in history]
                resumed = self.feed.resume(member, since, history=frames) == self.feed.position
        except Unrecoverable:
            resumed = False
        if resumed:
            if member.position == START:
                member.position = Position(0, self.feed.position.epoch)
            self.members.append(member)
        else:
            assert member.received == []

    # What must hold

    def reached(self, member: Member) -> Position:
        return Position(member.position.offset + len(member.received), member.position.epoch)

    @invariant()
    def every_run_is_contiguous(self) -> None:
        for member in self.members:
            offset, epoch = member.position
            run = self.accepted.get(epoch, [])[offset : offset + len(member.received)]
            # After a restart from an older snapshot the past is another one than the member has seen.
            if not self.was_set_back:
                assert member.received == run

    def teardown(self) -> None:
        """Once the network is calm, everybody who was not told otherwise has everything."""
        for _ in range(20):
            self.feed.verify()
            while self.repairs:
                if self.repairs[0] is None:
                    self.read()
                self.answer()
            self.turn()
        assert self.feed.position == self.engine.top
        for member in self.members:
            if not member.is_broken:
                assert self.reached(member).epoch in (self.engine.epoch, "")
                assert self.reached(member).offset == self.engine.offset
                if not self.was_set_back:
                    assert (
                        member.received == self.accepted.get(self.engine.epoch, [])[member.position.offset :]
                    )


TestRecovery = Recovery.TestCase
TestRecovery.settings = settings(
    max_examples=int(os.environ.get("HUBBUB_TEST_EXAMPLES", "100")), stateful_step_count=60, deadline=None
)


def feed_at(position: Position) -> tuple[Feed, list[Feed], list[Callable[[], None]]]:
    asked: list[Feed] = []
    callbacks: list[Callable[[], None]] = []
    return Feed("chat", callbacks.append, asked.append, position), asked, callbacks


def test_a_storm_of_clients_that_missed_the_same_is_served_from_memory() -> None:
    engine = Engine()
    feed, asked, _ = feed_at(engine.top)
    for _ in range(5):
        feed.publish(engine.publish())
    members = [Member(number, Position(2, engine.epoch)) for number in range(5000)]
    for member in members:
        assert feed.resume(member, member.position)
    assert {tuple(member.received) for member in members} == {(b"4", b"5", b"6")}
    assert asked == []


def test_what_was_read_for_one_client_is_there_for_the_next() -> None:
    engine = Engine()
    for _ in range(5):
        engine.publish()
    feed, _, _ = feed_at(engine.top)
    since = Position(1, engine.epoch)
    first, second = Member(1, since), Member(2, since)
    assert not feed.resume(first, since)
    history, top = engine.read(since)
    feed.remember(history, top)
    assert feed.resume(first, since)
    assert feed.resume(second, since)
    assert first.received == second.received == [b"3", b"4", b"5", b"6"]


def test_an_engine_that_was_set_back_is_noticed_even_when_it_has_caught_up_again() -> None:
    engine = Engine()
    feed, asked, _ = feed_at(engine.top)
    for _ in range(3):
        feed.publish(engine.publish())
    member = Member(1, feed.position)
    feed.join(member)
    engine.offset, engine.kept = 1, engine.kept[:1]
    for _ in range(4):
        engine.publish()
    feed.verify()
    assert asked == [feed]
    feed.repaired(*engine.read(feed.since))
    assert member.is_broken
    assert feed.position == engine.top


@pytest.mark.parametrize("since", [Position(9, "e1"), Position(1, "another")])
def test_a_position_that_never_was_is_unrecoverable(since: Position) -> None:
    engine = Engine()
    feed, _, _ = feed_at(engine.top)
    feed.publish(engine.publish())
    with pytest.raises(Unrecoverable, match="go on from offset 1"):
        feed.resume(Member(1, since), since)


def test_more_than_may_wait_for_a_repair_is_read_again_afterwards() -> None:
    engine = Engine(size=2000)
    feed, asked, callbacks = feed_at(engine.top)
    member = Member(1, feed.position)
    feed.join(member)
    engine.publish()
    feed.publish(engine.publish())
    page = engine.read(feed.since)
    for _ in range(1005):
        feed.publish(engine.publish())
    feed.repaired(*page)
    # The tail that did not fit is asked for, though nothing else comes.
    assert len(asked) == 2
    assert feed.is_repairing
    feed.repaired(*engine.read(feed.since))
    callbacks.pop()()
    assert len(member.received) == 1007
    assert feed.position == engine.top


def test_a_duplicate_is_dropped_without_a_question() -> None:
    engine = Engine()
    feed, asked, callbacks = feed_at(engine.top)
    member = Member(1, feed.position)
    feed.join(member)
    publication = engine.publish()
    for _ in range(3):
        feed.publish(publication)
    callbacks.pop()()
    assert member.received == [publication.data]
    assert asked == []


def test_the_next_offset_of_another_epoch_is_not_the_next() -> None:
    engine = Engine()
    feed, asked, _ = feed_at(engine.top)
    member = Member(1, feed.position)
    feed.join(member)
    feed.publish(engine.publish())
    engine.begin()
    engine.publish()
    feed.publish(engine.publish())
    assert asked == [feed]
    feed.repaired(*engine.read(feed.since))
    assert member.is_broken


def test_a_gap_among_what_came_during_a_repair_is_repaired_next() -> None:
    engine = Engine()
    feed, asked, callbacks = feed_at(engine.top)
    member = Member(1, feed.position)
    feed.join(member)
    engine.publish()
    feed.publish(engine.publish())
    page = engine.read(feed.since)
    engine.publish()
    feed.publish(engine.publish())
    feed.repaired(*page)
    assert len(asked) == 2
    feed.repaired(*engine.read(feed.since))
    callbacks.pop()()
    assert len(member.received) == 4
    assert not member.is_broken
