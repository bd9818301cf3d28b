"""Presence state: diffs that are late, lost or doubled, and syncs with the engine."""

from __future__ import annotations

from collections.abc import Callable

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from hubbub.core.presence import Changes, PresenceState, Users
from hubbub.types import PresenceEntry


def entry(connection: str, user: str | None = None) -> PresenceEntry:
    return PresenceEntry(connection, user)


ANN, ANN_TOO, BOB, ANONYMOUS = entry("1", "ann"), entry("2", "ann"), entry("3", "bob"), entry("4")


def test_joins_and_leaves() -> None:
    state = PresenceState()
    assert state.apply_diff([("1", ANN), ("3", BOB)]) == ([ANN, BOB], [])
    assert state.entries == [ANN, BOB]
    assert state.apply_diff([("1", None)]) == ([], [ANN])
    assert state.entries == [BOB]


def test_a_diff_that_is_known_changes_nothing() -> None:
    state = PresenceState()
    state.apply_diff([("1", ANN)])
    assert state.apply_diff([("1", ANN), ("3", None)]) == ([], [])


def test_a_sync_takes_over_the_entries_of_the_engine() -> None:
    state = PresenceState()
    state.apply_diff([("1", ANN)])
    state.begin_sync()
    assert state.sync({"3": BOB}) == ([BOB], [ANN])


def test_an_incomplete_sync_removes_no_entry() -> None:
    state = PresenceState()
    state.apply_diff([("1", ANN)])
    state.begin_sync()
    assert state.sync({"3": BOB}, is_complete=False) == ([BOB], [])
    assert state.entries == [ANN, BOB]


def test_a_diff_during_a_read_is_newer_than_the_read() -> None:
    state = PresenceState()
    state.apply_diff([("3", BOB)])
    state.begin_sync()
    state.apply_diff([("1", ANN), ("3", None)])
    assert state.sync({"3": BOB}) == ([], [])
    assert state.entries == [ANN]


def test_a_user_with_two_connections_has_one_entry() -> None:
    users = Users()
    assert users.merge(Changes([ANN, BOB], [])) == ([ANN, BOB], [])
    assert users.merge(Changes([ANN_TOO], [])) == ([], [])
    assert users.merge(Changes([], [ANN])) == ([], [])
    assert users.entries == [ANN, BOB]
    # It leaves with the entry with which it joined.
    assert users.merge(Changes([], [ANN_TOO])) == ([], [ANN])
    assert users.entries == [BOB]


def test_a_user_whose_page_is_reloaded_does_not_leave() -> None:
    users = Users()
    users.merge(Changes([ANN], []))
    assert users.merge(Changes([ANN_TOO], [ANN])) == ([], [])
    assert users.entries == [ANN]


def test_connections_without_a_user_have_an_entry_each() -> None:
    users = Users()
    other = entry("5")
    assert users.merge(Changes([ANONYMOUS, other], [])) == ([ANONYMOUS, other], [])
    assert users.merge(Changes([], [ANONYMOUS])) == ([], [ANONYMOUS])


def test_a_changed_entry_is_a_leave_and_a_join() -> None:
    state = PresenceState()
    state.apply_diff([("1", ANN)])
    assert state.apply_diff([("1", entry("1", "bob"))]) == ([entry("1", "bob")], [ANN])
    state.begin_sync()
    busy = PresenceEntry("1", "bob", {"busy": True})
    assert state.sync({"1": busy}) == ([busy], [entry("1", "bob")])
    assert state.entries == [busy]


def test_a_connection_whose_user_changes_leaves_the_one_and_joins_the_other() -> None:
    users = Users()
    users.merge(Changes([ANN, ANN_TOO], []))
    bob = entry("1", "bob")
    assert users.merge(Changes([bob], [ANN])) == ([bob], [])
    assert users.merge(Changes([], [bob])) == ([], [bob])
    assert users.merge(Changes([], [ANN_TOO])) == ([], [ANN])


def test_a_user_changes_with_the_connection_whose_entry_it_has() -> None:
    users = Users()
    users.merge(Changes([ANN, ANN_TOO], []))
    busy, busy_too = PresenceEntry("1", "ann", "busy"), PresenceEntry("2", "ann", "busy")
    assert users.merge(Changes([busy_too], [ANN_TOO])) == ([], [])
    assert users.merge(Changes([busy], [ANN])) == ([busy], [ANN])
    assert users.entries == [busy]
    assert users.merge(Changes([], [busy_too])) == ([], [])
    assert users.merge(Changes([], [busy])) == ([], [busy])


connections = st.sampled_from("abcdef")


class PresenceMachine(RuleBasedStateMachine):
    """An engine that connections enter and leave, and one node that receives the diffs unreliably."""

    @initialize()
    def begin(self) -> None:
        self.engine: dict[str, PresenceEntry] = {}
        self.under_way: list[tuple[str, PresenceEntry | None]] = []
        self.read: dict[str, PresenceEntry] | None = None
        self.state, self.users = PresenceState(), Users()
        # The view of a subscriber that gets the events: connections; and users, each with its entry.
        self.seen: dict[object, PresenceEntry] = {}
        self.seen_users: dict[object, PresenceEntry] = {}

    @rule(connection=connections, user=st.sampled_from(["ann", "bob", None]), info=st.sampled_from("xy"))
    def enter(self, connection: str, user: str | None, info: str) -> None:
        """Enter a connection, perhaps again, as another user or with another info."""
        entered = PresenceEntry(connection, user, info)
        self.engine[connection] = entered
        self.under_way.append((connection, entered))

    @rule(connection=connections)
    def leave(self, connection: str) -> None:
        if self.engine.pop(connection, None):
            self.under_way.append((connection, None))

    @precondition(lambda self: self.under_way)
    @rule(count=st.integers(1, 4), fate=st.sampled_from(["received", "received", "lost", "doubled"]))
    def receive(self, count: int, fate: str) -> None:
        diff, self.under_way = self.under_way[:count], self.under_way[count:]
        if fate == "lost":
            return
        self.follow(self.state.apply_diff(diff))
        if fate == "doubled":
            self.follow(self.state.apply_diff(diff))

    @precondition(lambda self: self.read is None)
    @rule()
    def begin_sync(self) -> None:
        self.state.begin_sync()
        self.read = dict(self.engine)

    @precondition(lambda self: self.read is not None)
    @rule(is_complete=st.booleans())
    def sync(self, is_complete: bool) -> None:
        assert self.read is not None
        self.follow(self.state.sync(self.read, is_complete=is_complete))
        self.read = None

    def follow(self, changes: Changes) -> None:
        _follow(self.seen, changes, _connection)
        _follow(self.seen_users, self.users.merge(changes), _user)

    @invariant()
    def the_events_add_up(self) -> None:
        assert self.seen == {each.connection: each for each in self.state.entries}
        assert self.seen_users == {_user(each): each for each in self.users.entries}
        assert {each.user for each in self.users.entries} == {each.user for each in self.state.entries}
        named = [each.user for each in self.users.entries if each.user is not None]
        assert len(named) == len(set(named))

    def teardown(self) -> None:
        if not hasattr(self, "state"):
            return
        # When nothing is under way, one sync corrects everything.
        self.under_way.clear()
        self.state.begin_sync()
        self.follow(self.state.sync(self.engine))
        assert self.seen == self.engine


def _connection(entry: PresenceEntry) -> object:
    return entry.connection


def _user(entry: PresenceEntry) -> object:
    return (None, entry.connection) if entry.user is None else (entry.user, "")


def _follow(
    seen: dict[object, PresenceEntry], changes: Changes, key: Callable[[PresenceEntry], object]
) -> None:
    # In the order in which presence events are sent.
    for each in changes.left:
        assert seen.pop(key(each)) == each
    for each in changes.joined:
        assert key(each) not in seen
        seen[key(each)] = each


TestPresenceMachine = PresenceMachine.TestCase
TestPresenceMachine.settings = settings(deadline=None, max_examples=100, stateful_step_count=30)
