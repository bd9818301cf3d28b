"""Who is in a channel, told late, twice or not at all, and shown now and then."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from hubbub.core.roster import Changes, Roster, Users
from hubbub.types import PresenceMember


def member(connection: str, user: str | None = None) -> PresenceMember:
    return PresenceMember(connection, user)


ANN, ANN_TOO, BOB, NOBODY = member("1", "ann"), member("2", "ann"), member("3", "bob"), member("4")


def test_who_comes_and_who_leaves() -> None:
    roster = Roster()
    assert roster.tell([("1", ANN), ("3", BOB)]) == ([ANN, BOB], [])
    assert roster.members == [ANN, BOB]
    assert roster.tell([("1", None)]) == ([], [ANN])
    assert roster.members == [BOB]


def test_what_is_known_is_no_news() -> None:
    roster = Roster()
    roster.tell([("1", ANN)])
    assert roster.tell([("1", ANN), ("3", None)]) == ([], [])


def test_what_the_engine_has_counts() -> None:
    roster = Roster()
    roster.tell([("1", ANN)])
    roster.begin_reading()
    assert roster.show({"3": BOB}) == ([BOB], [ANN])


def test_an_engine_that_may_have_forgotten_removes_nobody() -> None:
    roster = Roster()
    roster.tell([("1", ANN)])
    roster.begin_reading()
    assert roster.show({"3": BOB}, is_complete=False) == ([BOB], [])
    assert roster.members == [ANN, BOB]


def test_what_is_told_while_reading_is_newer_than_what_is_read() -> None:
    roster = Roster()
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


connections = st.sampled_from("abcdef")


class RosterMachine(RuleBasedStateMachine):
    """An engine that somebody enters and leaves, and one node that hears of it badly."""

    @initialize()
    def begin(self) -> None:
        self.engine: dict[str, PresenceMember] = {}
        self.on_the_way: list[tuple[str, PresenceMember | None]] = []
        self.reading: dict[str, PresenceMember] | None = None
        self.roster, self.users = Roster(), Users()
        # What somebody who watches has been told.
        self.seen: dict[str, PresenceMember] = {}
        self.seen_users: dict[str, PresenceMember] = {}

    @rule(connection=connections)
    def enter(self, connection: str) -> None:
        # Some are the same user in two connections.
        entered = member(connection, "ann" if connection < "c" else connection)
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
        _follow(self.seen, changes)
        _follow(self.seen_users, self.users.merge(changes))

    @invariant()
    def the_story_adds_up(self) -> None:
        assert self.seen == {each.connection: each for each in self.roster.members}
        assert self.seen_users == {each.connection: each for each in self.users.members}
        assert {each.user for each in self.users.members} == {each.user for each in self.roster.members}

    def teardown(self) -> None:
        if not hasattr(self, "roster"):
            return
        # When all is quiet, one look puts everything right.
        self.on_the_way.clear()
        self.roster.begin_reading()
        self.take(self.roster.show(self.engine))
        assert self.seen == self.engine


def _follow(seen: dict[str, PresenceMember], changes: Changes) -> None:
    for each in changes.joined:
        assert each.connection not in seen
        seen[each.connection] = each
    for each in changes.left:
        assert seen.pop(each.connection) == each


TestRosterMachine = RosterMachine.TestCase
TestRosterMachine.settings = settings(deadline=None, max_examples=100, stateful_step_count=30)
