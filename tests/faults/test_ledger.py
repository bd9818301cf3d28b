"""The ledger finds each kind of error. The fault suite is worth as much as this check."""

from __future__ import annotations

import pytest

from hubbub import Position
from tests.faults.ledger import Account, Counts, Fate, Ledger, Loss, Message, Run


class Trial:
    """Two clients and six messages without an error."""

    def __init__(self) -> None:
        self.messages = {
            text: Message(text, key, fate=Fate.ACCEPTED, positions={Position(offset, "e")})
            for offset, (text, key) in enumerate(
                [("a", None), ("b", None), ("c", "c"), ("d", None), ("e", None), ("f", None)], 1
            )
        }
        self.accounts = [
            Account(name, [Run(Position(0, "e"), list("abcdef"))]) for name in ("the first", "the second")
        ]
        self.kept = {Position(offset, "e"): text for offset, text in enumerate("abcdef", 1)}
        self.top = Position(6, "e")
        self.loss = Loss.NOTHING

    @property
    def problems(self) -> str:
        ledger = Ledger(self.messages.values(), self.accounts, self.kept.items(), self.top, self.loss)
        return "\n".join(ledger.problems())

    @property
    def first(self) -> list[str]:
        return self.accounts[0].runs[0].texts


@pytest.fixture
def trial() -> Trial:
    return Trial()


def test_a_trial_without_errors_has_no_problems(trial: Trial) -> None:
    assert trial.problems == ""


def test_a_client_may_join_later(trial: Trial) -> None:
    # It need not have messages that were accepted before it joined.
    for text in "ab":
        trial.messages[text].positions.clear()
    trial.accounts[0].runs = [Run(Position(2, "e"), list("cdef"))]
    assert trial.problems == ""


@pytest.mark.parametrize("missing", "abcdef")
def test_a_lost_message_is_found(trial: Trial, missing: str) -> None:
    trial.first.remove(missing)
    assert "the first is at 5:e, but the channel at" in trial.problems


def test_a_message_that_all_clients_lost_is_found(trial: Trial) -> None:
    for account in trial.accounts:
        account.runs[0].texts.remove("c")
    trial.kept = {Position(offset, "e"): text for offset, text in enumerate("abdef", 1)}
    trial.top = Position(5, "e")
    assert "the engine has 'd' at 3:e, but its publisher has 'c'" in trial.problems


def test_a_lost_tail_is_found(trial: Trial) -> None:
    for account in trial.accounts:
        account.runs[0].texts.remove("f")
    del trial.kept[Position(6, "e")]
    trial.top = Position(5, "e")
    assert "the first never received 'f', accepted at 6:e" in trial.problems


@pytest.mark.parametrize("doubled", [0, 2, 5])
def test_a_doubled_message_is_found(trial: Trial, doubled: int) -> None:
    trial.first.insert(doubled, trial.first[doubled])
    assert f"the first received {trial.first[doubled]!r} 2 times" in trial.problems


def test_a_message_that_was_published_twice_is_found(trial: Trial) -> None:
    for account in trial.accounts:
        account.runs[0].texts.append("b")
    trial.kept[Position(7, "e")] = "b"
    trial.top = Position(7, "e")
    assert "'b' is doubled" in trial.problems


def test_swapped_messages_are_found(trial: Trial) -> None:
    trial.first[1:3] = ["c", "b"]
    assert "the first has 'c' at 2:e, but its publisher has 'b'" in trial.problems


def test_another_order_of_unknown_messages_is_found(trial: Trial) -> None:
    for text in "bc":
        trial.messages[text].fate = Fate.UNKNOWN
        trial.messages[text].positions.clear()
    trial.kept.clear()
    trial.first[1:3] = ["c", "b"]
    assert "the second has 'b' at 2:e, but the first has 'c'" in trial.problems


def test_a_message_that_overtook_one_of_the_same_publisher_is_found(trial: Trial) -> None:
    trial.messages["e"].after = trial.messages["b"]
    assert trial.problems == ""
    trial.messages["b"].after = trial.messages["e"]
    assert "'b' is at 2:e, before 5:e" in trial.problems


def test_an_unknown_message_may_be_delivered_or_not(trial: Trial) -> None:
    trial.messages["b"].fate = Fate.UNKNOWN
    trial.messages["b"].positions.clear()
    trial.messages["x"] = Message("x")
    assert trial.problems == ""


def test_a_message_that_was_never_sent_is_found(trial: Trial) -> None:
    trial.messages["b"].fate = Fate.REFUSED
    assert "'b' was never sent" in trial.problems


def test_a_message_that_was_never_published_is_found(trial: Trial) -> None:
    del trial.messages["b"]
    assert "'b' was never published" in trial.problems


def test_a_client_that_has_never_joined_is_found(trial: Trial) -> None:
    trial.accounts.append(Account("the third"))
    assert "the third has never joined" in trial.problems


def test_an_objection_of_a_client_is_found(trial: Trial) -> None:
    trial.accounts[0].objections.append("that does not add up")
    assert "the first: that does not add up" in trial.problems


def test_a_notification_without_a_loss_is_a_problem(trial: Trial) -> None:
    trial.accounts[0].runs = [Run(Position(0, "e"), list("abc")), Run(Position(3, "e"), list("def"))]
    assert "the first was notified of a loss, but there is none" in trial.problems


def test_a_disconnect_without_a_loss_is_a_problem(trial: Trial) -> None:
    trial.accounts[0].breaks = 1
    assert "the first was notified of a loss, but there is none" in trial.problems


@pytest.fixture
def lossy(trial: Trial) -> Trial:
    """Return a trial whose engine lost everything after "d". A message with a key was published again."""
    trial.loss = Loss.EVERYTHING
    trial.messages["c"].positions.add(Position(1, "new"))
    for offset, text in enumerate("ef", 2):
        trial.messages[text].positions = {Position(offset, "new")}
    for account in trial.accounts:
        # No client has received "d".
        account.runs = [Run(Position(0, "e"), list("abc")), Run(Position(0, "new"), list("cef"))]
    trial.kept = {Position(offset, "new"): text for offset, text in enumerate("cef", 1)}
    trial.top = Position(3, "new")
    return trial


def test_a_loss_with_a_notification_is_no_problem(lossy: Trial) -> None:
    assert lossy.problems == ""
    assert Ledger(lossy.messages.values(), lossy.accounts, (), lossy.top, lossy.loss).notified == 2


def test_a_run_from_before_there_was_an_epoch_gets_the_name_of_the_epoch(lossy: Trial) -> None:
    lossy.accounts[0].runs[-1].start = Position(0, "")
    assert lossy.problems == ""


def test_a_silent_loss_is_found(lossy: Trial) -> None:
    # It continues in the old epoch.
    lossy.accounts[0].runs = [Run(Position(0, "e"), list("abccef"))]
    assert "the first has 'c' at 4:e, but its publisher has 'd'" in lossy.problems
    assert "the first is at 6:e, but the channel at" in lossy.problems


def test_a_repeated_message_without_a_key_is_found(lossy: Trial) -> None:
    lossy.messages["c"].key = None
    assert "'c' is doubled" in lossy.problems


@pytest.fixture
def set_back(trial: Trial) -> Trial:
    """Return a trial whose engine was set back from "f" to "c", and then accepted "x" and "c"."""
    trial.loss = Loss.THE_LATEST
    trial.messages["x"] = Message("x", fate=Fate.ACCEPTED, positions={Position(4, "e")})
    trial.messages["c"].positions.add(Position(5, "e"))
    trial.messages["y"] = Message("y", fate=Fate.ACCEPTED, positions={Position(1, "new")})
    for account in trial.accounts:
        account.runs.append(Run(Position(0, "new"), ["y"]))
    trial.kept = {Position(1, "new"): "y"}
    trial.top = Position(1, "new")
    return trial


def test_an_engine_that_is_set_back_begins_a_new_epoch(set_back: Trial) -> None:
    assert set_back.problems == ""


def test_the_rest_of_a_stream_may_continue_in_a_new_epoch(set_back: Trial) -> None:
    set_back.kept = {Position(offset, "new"): text for offset, text in enumerate("abcxcy", 1)}
    set_back.messages["y"].positions = {Position(6, "new")}
    for account in set_back.accounts:
        account.runs[-1] = Run(Position(5, "new"), ["y"])
    set_back.top = Position(6, "new")
    assert set_back.problems == ""
    set_back.kept[Position(2, "new")] = "a"
    assert "'a' is doubled" in set_back.problems


def test_a_notified_client_may_begin_with_messages_that_it_has(set_back: Trial) -> None:
    # A worker that had not yet noticed the new epoch let it begin after "c".
    set_back.accounts[0].runs.insert(1, Run(Position(3, "e"), list("def")))
    assert set_back.problems == ""
    set_back.accounts[0].runs[1].texts.append("f")
    assert "the first received 'f' 2 times" in set_back.problems


def test_a_client_that_continues_in_the_old_epoch_is_found(set_back: Trial) -> None:
    # It reconnected after "x" and "c" had got the offsets of its messages.
    set_back.accounts[0].runs = [Run(Position(0, "e"), [*"abcdef", "y"])]
    assert "the first is at 7:e, but the channel at" in set_back.problems


def test_two_messages_at_one_offset_of_the_new_epoch_are_found(set_back: Trial) -> None:
    set_back.accounts[0].runs[-1].texts = ["x"]
    assert "the first has 'x' at 1:new" in set_back.problems


def test_counts_add_up() -> None:
    total = Counts(published=2, breaks=1, silence=2.0) + Counts(published=3, silence=1.0)
    assert total == Counts(published=5, breaks=1, silence=2.0)
    assert str(total).startswith("5 published, 0 accepted,")
    assert str(total).endswith("1 breaks, 0 losses, 0 notified, 2.0 s silence")
