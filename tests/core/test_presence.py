"""Who is in a channel, told late, twice or not at all, and shown now and then."""

from __future__ import annotations

from collections.abc import Callable

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from hubbub.core.presence import Changes, PresenceState, Users
from hubbub.types import PresenceEntry


def member(connection: str, user: str | None = None) -> PresenceEntry:
    return PresenceEntry(connection, user)


ANN, ANN_TOO, BOB, NOBODY = member("1", "ann"), member("2", "ann"), member("3", "bob"), member("4")


def test_who_comes_and_who_leaves() -> None:
    roster = PresenceState()
    assert roster.tell([("1", ANN), ("3", BOB)]) == ([ANN, BOB], [])
    assert roster.members == [ANN, BOB]
    assert roster.tell([("1", None)]) == ([], [ANN])
    assert roster.members == [BOB]


def test_what_is_known_is_no_news() -> None:
    roster = PresenceState()
    roster.tell([("1", ANN)])
    assert roster.tell([("1", ANN), ("3", None)]) == ([], [])


def test_what_the_engine_has_counts() -> None:
    roster = PresenceState()
    roster.tell([("1", ANN)])
    roster.begin_reading()
    assert roster.show({"3": BOB}) == ([BOB], [ANN])


def test_an_engine_that_may_have_forgotten_removes_nobody() -> None:
    roster = PresenceState()
    roster.tell([("1", ANN)])
    roster.begin_reading()
    assert roster.show({"3": BOB}, is_complete=False) == ([BOB], [])
    assert roster.members == [ANN, BOB]


def test_what_is_told_while_reading_is_newer_than_what_is_read() -> None:
    roster = PresenceState()
    roster.tell([("3", BOB)])
    roster.begin_reading()
    roster.tell([("1", ANN), ("3", None)])
    assert roster.show({"3": BOB}) == ([], [])
    assert roster.members == [ANN]


def test_a_user_is_there_once() -> None:
    users = Users()
    assert users.merge(Changes([ANN, BOB], [])) == ([ANN, BOB], [])
    assert users.merge(Changes([ANN_TOO], [])) == ([], [])
    assert users.merge(Changes([], [ANN])) == ([], [])
    assert users.members == [ANN, BOB]
    # Under the name under which it came.
    assert users.merge(Changes([], [ANN_TOO])) == ([], [ANN])
    assert users.members == [BOB]


def test_a_page_that_is_loaded_again_has_not_left() -> None:
    users = Users()
    users.merge(Changes([ANN], []))
    assert users.merge(Changes([ANN_TOO], [ANN])) == ([], [])
    assert users.members == [ANN]


def test_connections_without_a_user_are_not_one() -> None:
    users = Users()
    other = member("5")
    assert users.merge(Changes([NOBODY, other], [])) == ([NOBODY, other], [])
    assert users.merge(Changes([], [NOBODY])) == ([], [NOBODY])


def test_a_changed_entry_is_a_leave_and_a_join() -> None:
    roster = PresenceState()
    roster.tell([("1", ANN)])
    assert roster.tell([("1", member("1", "bob"))]) == ([member("1", "bob")], [ANN])
    roster.begin_reading()
    busy = PresenceEntry("1", "bob", {"busy": True})
    assert roster.show({"1": busy}) == ([busy], [member("1", "bob")])
    assert roster.members == [busy]


def test_a_connection_that_becomes_another_user_leaves_as_the_one_and_joins_as_the_other() -> None:
    users = Users()
    users.merge(Changes([ANN, ANN_TOO], []))
    bob = member("1", "bob")
    assert users.merge(Changes([bob], [ANN])) == ([bob], [])
    assert users.merge(Changes([], [bob])) == ([], [bob])
    assert users.merge(Changes([], [ANN_TOO])) == ([], [ANN])


def test_a_user_changes_with_the_connection_that_stands_for_it() -> None:
    users = Users()
    users.merge(Changes([ANN, ANN_TOO], []))
    busy, busy_too = PresenceEntry("1", "ann", "busy"), PresenceEntry("2", "ann", "busy")
    assert users.merge(Changes([busy_too], [ANN_TOO])) == ([], [])
    assert users.merge(Changes([busy], [ANN])) == ([busy], [ANN])
    assert users.members == [busy]
    assert users.merge(Changes([], [busy_too])) == ([], [])
    assert users.merge(Changes([], [busy])) == ([], [busy])


connections = st.sampled_from("abcdef")


class RosterMachine(RuleBasedStateMachine):
    """An engine that somebody enters and leaves, and one node that hears of it badly."""

    @initialize()
    def begin(self) -> None:
        self.engine: dict[str, PresenceEntry] = {}
        self.on_the_way: list[tuple[str, PresenceEntry | None]] = []
        self.reading: dict[str, PresenceEntry] | None = None
        self.roster, self.users = PresenceState(), Users()
        # What somebody who watches has been told: connections, and users, each as one of its connections.
        self.seen: dict[object, PresenceEntry] = {}
        self.seen_users: dict[object, PresenceEntry] = {}

    @rule(connection=connections, user=st.sampled_from(["ann", "bob", None]), info=st.sampled_from("xy"))
    def enter(self, connection: str, user: str | None, info: str) -> None:
        """Also again, as somebody else, or with something else to say."""
        entered = PresenceEntry(connection, user, info)
        self.engine[connection] = entered
        self.on_the_way.append((connection, entered))

    @rule(connection=connections)
    def leave(self, connection: str) -> None:
        if self.engine.pop(connection, None):
            self.on_the_way.append((connection, None))

    @precondition(lambda self: self.on_the_way)
    @rule(count=st.integers(1, 4), fate=st.sampled_from(["heard", "heard", "lost", "doubled"]))
    def hear(self, count: int, fate: str) -> None:
        news, self.on_the_way = self.on_the_way[:count], self.on_the_way[count:]
        if fate == "lost":
            return
        self.take(self.roster.tell(news))
        if fate == "doubled":
            self.take(self.roster.tell(news))

    @precondition(lambda self: self.reading is None)
    @rule()
    def begin_reading(self) -> None:
        self.roster.begin_reading()
        self.reading = dict(self.engine)

    @precondition(lambda self: self.reading is not None)
    @rule(is_complete=st.booleans())
    def end_reading(self, is_complete: bool) -> None:
        assert self.reading is not None
        self.take(self.roster.show(self.reading, is_complete=is_complete))
        self.reading = None

    def take(self, changes: Changes) -> None:
        _follow(self.seen, changes, _connection)
        _follow(self.seen_users, self.users.merge(changes), _user)

    @invariant()
    def the_story_adds_up(self) -> None:
        assert self.seen == {each.connection: each for each in self.roster.members}
        assert self.seen_users == {_user(each): each for each in self.users.members}
        assert {each.user for each in self.users.members} == {each.user for each in self.roster.members}
        named = [each.user for each in self.users.members if each.user is not None]
        assert len(named) == len(set(named))

    def teardown(self) -> None:
        if not hasattr(self, "roster"):
            return
        # When all is quiet, one look puts everything right.
        self.on_the_way.clear()
        self.roster.begin_reading()
        self.take(self.roster.show(self.engine))
        assert self.seen == self.engine


def _connection(member: PresenceEntry) -> object:
    return member.connection


def _user(member: PresenceEntry) -> object:
    return (None, member.connection) if member.user is None else (member.user, "")


def _follow(
    seen: dict[object, PresenceEntry], changes: Changes, key: Callable[[PresenceEntry], object]
) -> None:
    # In the order in which a watch tells it.
    for each in changes.left:
        assert seen.pop(key(each)) == each
    for each in changes.joined:
        assert key(each) not in seen
        seen[key(each)] = each


TestRosterMachine = RosterMachine.TestCase
TestRosterMachine.settings = settings(deadline=None, max_examples=100, stateful_step_count=30)
