from __future__ import annotations

from typing import get_args

import pytest

from hubbub.core.frames import FRAME_OVERHEAD, Batch, Message
from hubbub.core.outbox import Outbox
from hubbub.types import SlowConsumer

LIMIT = 1000
POLICIES = get_args(SlowConsumer)
DROPPING: tuple[SlowConsumer, ...] = ("drop_oldest", "latest")

any_policy = pytest.mark.parametrize("policy", POLICIES)
dropping_policy = pytest.mark.parametrize("policy", DROPPING)


def batch(channel: str | None, *costs: int) -> Batch:
    """Return a batch of messages, each of which counts for so many bytes in the outbox."""
    return Batch([Message(bytes(cost - FRAME_OVERHEAD)) for cost in costs], channel)


def direct(cost: int) -> Batch:
    return batch(None, cost)


def push(outbox: Outbox, *batches: Batch) -> tuple[Batch, ...]:
    for each in batches:
        assert outbox.push(each)
    return batches


def take(outbox: Outbox) -> Batch:
    taken = outbox.take()
    assert taken is not None
    return taken


def messages(*batches: Batch) -> list[Message]:
    """Return the messages of ``batches``: batches of the same bytes are equal, messages are not."""
    return [message for each in batches for message in each.messages]


def send_all(outbox: Outbox) -> list[Message]:
    """Return the messages that go out, in order, until nothing waits any more."""
    taken = []
    while (each := outbox.take()) is not None:
        outbox.sent(each)
        taken.append(each)
    return messages(*taken)


# Every policy


@any_policy
def test_a_new_outbox_is_empty(policy: SlowConsumer) -> None:
    outbox = Outbox(LIMIT, policy)
    assert (len(outbox), outbox.size, outbox.dropped) == (0, 0, 0)
    assert outbox.has_room
    assert outbox.take() is None


@any_policy
def test_batches_that_fit_go_out_in_the_order_in_which_they_came(policy: SlowConsumer) -> None:
    outbox = Outbox(LIMIT, policy)
    pushed = push(outbox, batch("b", 256), direct(256), batch("a", 256))
    assert send_all(outbox) == messages(*pushed)
    assert outbox.dropped == 0


@any_policy
def test_bytes_count_until_they_are_sent(policy: SlowConsumer) -> None:
    outbox = Outbox(LIMIT, policy)
    push(outbox, batch("a", 300, 300), direct(400))
    assert (len(outbox), outbox.size) == (2, 1000)
    first = take(outbox)
    assert (len(outbox), outbox.size) == (1, 1000)
    outbox.sent(first)
    assert outbox.size == 400
    second = take(outbox)
    assert (len(outbox), outbox.size) == (0, 400)
    outbox.sent(second)
    assert outbox.size == 0


@any_policy
def test_a_batch_larger_than_the_bound_is_taken_when_nothing_else_waits(policy: SlowConsumer) -> None:
    outbox = Outbox(LIMIT, policy)
    (large,) = push(outbox, batch("a", 900, 900))
    assert outbox.size == 1800
    assert send_all(outbox) == messages(large)
    assert (outbox.size, outbox.dropped) == (0, 0)


@any_policy
def test_direct_sends_are_never_refused(policy: SlowConsumer) -> None:
    outbox = Outbox(LIMIT, policy)
    pushed = push(outbox, direct(900), direct(900), direct(900))
    assert outbox.size == 2700
    assert send_all(outbox) == messages(*pushed)
    assert (outbox.size, outbox.dropped) == (0, 0)


@any_policy
def test_direct_sends_have_room_below_the_bound(policy: SlowConsumer) -> None:
    outbox = Outbox(LIMIT, policy)
    push(outbox, direct(999))
    assert outbox.has_room
    push(outbox, direct(256))
    assert not outbox.has_room


@any_policy
def test_there_is_no_room_at_the_bound_until_something_is_sent(policy: SlowConsumer) -> None:
    outbox = Outbox(LIMIT, policy)
    push(outbox, direct(1000))
    assert not outbox.has_room
    taken = take(outbox)
    assert not outbox.has_room
    outbox.sent(taken)
    assert outbox.has_room


@any_policy
def test_clear_drops_everything_that_waits_but_not_the_batch_that_is_being_sent(policy: SlowConsumer) -> None:
    outbox = Outbox(LIMIT, policy)
    push(outbox, batch("a", 300), batch("b", 256, 256))
    taken = take(outbox)
    outbox.clear()
    assert (len(outbox), outbox.size, outbox.dropped) == (0, 300, 0)
    assert outbox.take() is None
    outbox.sent(taken)
    assert outbox.size == 0


@any_policy
def test_a_cleared_outbox_is_as_good_as_new(policy: SlowConsumer) -> None:
    outbox = Outbox(LIMIT, policy)
    push(outbox, batch("a", 300), batch("b", 300))
    outbox.clear()
    pushed = push(outbox, batch("c", 300), batch("a", 400), batch("b", 300))
    assert outbox.dropped == 0
    assert send_all(outbox) == messages(*pushed)
    assert outbox.size == 0


# disconnect


def test_disconnect_takes_batches_that_fit_to_the_byte() -> None:
    outbox = Outbox(LIMIT, "disconnect")
    pushed = push(outbox, batch("a", 600), batch("a", 400))
    assert send_all(outbox) == messages(*pushed)


def test_disconnect_refuses_one_byte_more_and_nothing_waits_then() -> None:
    outbox = Outbox(LIMIT, "disconnect")
    push(outbox, batch("a", 600), direct(300))
    assert not outbox.push(batch("a", 401))
    assert (len(outbox), outbox.size) == (0, 0)
    assert outbox.take() is None


def test_disconnect_counts_the_batch_that_is_being_sent() -> None:
    outbox = Outbox(LIMIT, "disconnect")
    push(outbox, batch("a", 600))
    taken = take(outbox)
    assert not outbox.push(batch("a", 401))
    # It is on its way: the socket may still take it.
    assert outbox.size == 600
    outbox.sent(taken)
    assert outbox.size == 0


def test_disconnect_takes_no_large_batch_while_anything_is_being_sent() -> None:
    outbox = Outbox(LIMIT, "disconnect")
    push(outbox, direct(256))
    take(outbox)
    assert not outbox.push(batch("a", 1001))


def test_disconnect_drops_nothing_as_long_as_the_client_stays() -> None:
    outbox = Outbox(LIMIT, "disconnect")
    pushed = push(outbox, batch("a", 300), batch("a", 300), batch("a", 300))
    assert send_all(outbox) == messages(*pushed)
    assert outbox.dropped == 0


# drop_oldest


def test_drop_oldest_drops_the_oldest_and_counts_their_messages() -> None:
    outbox = Outbox(LIMIT, "drop_oldest")
    push(outbox, batch("a", 256, 256))
    kept = push(outbox, batch("b", 400), batch("a", 300))
    assert outbox.dropped == 2
    assert outbox.size == 700
    assert send_all(outbox) == messages(*kept)


def test_drop_oldest_drops_no_more_than_it_must() -> None:
    outbox = Outbox(LIMIT, "drop_oldest")
    push(outbox, batch("a", 400))
    kept = push(outbox, batch("a", 300), batch("a", 300), batch("a", 400))
    assert outbox.dropped == 1
    assert outbox.size == LIMIT
    assert send_all(outbox) == messages(*kept)


def test_drop_oldest_keeps_direct_sends_where_they_are() -> None:
    outbox = Outbox(LIMIT, "drop_oldest")
    first, _, second = push(outbox, direct(300), batch("a", 300), direct(300))
    (newest,) = push(outbox, batch("a", 400))
    assert outbox.dropped == 1
    assert send_all(outbox) == messages(first, second, newest)


def test_drop_oldest_leaves_the_batch_that_is_being_sent_alone() -> None:
    outbox = Outbox(LIMIT, "drop_oldest")
    sending, _ = push(outbox, batch("a", 300), batch("a", 400))
    assert take(outbox) is sending
    (newest,) = push(outbox, batch("a", 500))
    assert (outbox.size, outbox.dropped) == (800, 1)
    outbox.sent(sending)
    assert send_all(outbox) == messages(newest)


def test_drop_oldest_does_not_drop_for_direct_sends() -> None:
    # Their senders waited for room: the bound is exceeded by one message, and nothing is lost.
    outbox = Outbox(LIMIT, "drop_oldest")
    pushed = push(outbox, batch("a", 900), direct(900))
    assert outbox.size == 1800
    assert send_all(outbox) == messages(*pushed)


def test_drop_oldest_gives_a_large_batch_the_place_of_all_that_waits() -> None:
    outbox = Outbox(LIMIT, "drop_oldest")
    push(outbox, batch("a", 300), batch("b", 300))
    (large,) = push(outbox, batch("a", 1500))
    assert (outbox.size, outbox.dropped) == (1500, 2)
    assert send_all(outbox) == messages(large)


# latest


def test_latest_keeps_the_newest_of_a_channel_in_the_place_of_the_older() -> None:
    outbox = Outbox(LIMIT, "latest")
    _, other = push(outbox, batch("a", 256), batch("b", 256))
    (newer,) = push(outbox, batch("a", 300))
    assert (len(outbox), outbox.size, outbox.dropped) == (2, 556, 1)
    assert send_all(outbox) == messages(newer, other)
    assert outbox.size == 0


def test_latest_keeps_one_message_of_the_batches_that_it_joins() -> None:
    outbox = Outbox(10_000, "latest")
    push(outbox, batch("a", 256, 256))
    (newer,) = push(outbox, batch("a", 256, 256, 300))
    assert (outbox.size, outbox.dropped) == (300, 4)
    assert send_all(outbox) == list(newer.messages[-1:])
    assert outbox.size == 0


def test_latest_sends_all_of_a_batch_that_found_nothing_waiting() -> None:
    outbox = Outbox(10_000, "latest")
    (pushed,) = push(outbox, batch("a", 256, 256, 300))
    assert send_all(outbox) == messages(pushed)
    assert outbox.dropped == 0


def test_latest_leaves_the_batch_that_is_being_sent_alone() -> None:
    outbox = Outbox(LIMIT, "latest")
    (first,) = push(outbox, batch("a", 256))
    assert take(outbox) is first
    second, other = push(outbox, batch("a", 256), batch("b", 256))
    assert (outbox.size, outbox.dropped) == (768, 0)
    outbox.sent(first)
    assert send_all(outbox) == messages(second, other)


def test_latest_keeps_direct_sends_where_they_are() -> None:
    outbox = Outbox(10_000, "latest")
    _, first, second = push(outbox, batch("a", 256), direct(256), direct(256))
    (newer,) = push(outbox, batch("a", 256))
    assert send_all(outbox) == messages(newer, first, second)


def test_latest_drops_the_oldest_when_there_are_too_many_channels() -> None:
    outbox = Outbox(LIMIT, "latest")
    push(outbox, batch("a", 400))
    kept = push(outbox, batch("b", 300), batch("c", 300), batch("d", 300))
    assert outbox.dropped == 1
    assert send_all(outbox) == messages(*kept)


def test_latest_drops_other_channels_before_the_newest_batch() -> None:
    # The newest batch stands in the place of an older publication, and may thus be the first in the queue.
    outbox = Outbox(LIMIT, "latest")
    push(outbox, batch("a", 300), batch("b", 300), batch("c", 300))
    (newest,) = push(outbox, batch("a", 500))
    assert newest.messages[-1] in send_all(outbox)
    assert outbox.dropped == 2


def test_a_channel_whose_publication_was_dropped_may_publish_again() -> None:
    outbox = Outbox(LIMIT, "latest")
    _, other = push(outbox, batch("a", 600), batch("b", 600))
    (newer,) = push(outbox, batch("a", 300))
    assert send_all(outbox) == messages(other, newer)
    assert outbox.dropped == 1
    push(outbox, newer)
    assert send_all(outbox) == messages(newer)


# Both that drop


@dropping_policy
def test_batches_that_were_cleared_do_not_count_as_dropped(policy: SlowConsumer) -> None:
    outbox = Outbox(LIMIT, policy)
    push(outbox, batch("a", 300), batch("b", 300))
    outbox.clear()
    _, newer = push(outbox, batch("c", 600), batch("d", 600))
    assert (outbox.size, outbox.dropped) == (600, 1)
    assert send_all(outbox) == messages(newer)


@dropping_policy
def test_the_newest_batch_is_dropped_when_those_that_must_stay_leave_no_room(policy: SlowConsumer) -> None:
    outbox = Outbox(LIMIT, policy)
    sending, waiting = push(outbox, direct(500), direct(300))
    assert take(outbox) is sending
    assert outbox.push(batch("a", 256, 256))
    assert (len(outbox), outbox.size, outbox.dropped) == (1, 800, 2)
    outbox.sent(sending)
    assert send_all(outbox) == messages(waiting)
    assert outbox.size == 0


@dropping_policy
def test_publications_never_take_the_outbox_beyond_its_bound(policy: SlowConsumer) -> None:
    outbox = Outbox(LIMIT, policy)
    push(outbox, direct(300))
    take(outbox)
    for cost in (256, 700, 999, 5000, 300):
        for channel in "abc":
            assert outbox.push(batch(channel, cost))
            assert outbox.size <= LIMIT


@pytest.mark.parametrize("policy", ["drop_oldest", "latest"])
def test_lossless_batches_are_never_dropped_silently(policy: SlowConsumer) -> None:
    outbox = Outbox(1000, policy)
    message = Message(b"x" * 100)
    numbered = Batch((message,), "room", lossless=True)
    assert outbox.push(numbered)
    assert outbox.push(numbered)
    assert not outbox.push(numbered)
    assert outbox.dropped == 0
    assert len(outbox) == 0


@dropping_policy
def test_batches_that_may_be_dropped_give_way_to_those_that_may_not(policy: SlowConsumer) -> None:
    outbox = Outbox(LIMIT, policy)
    first, numbered = direct(300), Batch(batch("room", 400).messages, "room", lossless=True)
    a, b = batch("a", 300), batch("b", 300)
    push(outbox, first, a, b)
    # The oldest gives way, and no more than that.
    push(outbox, numbered)
    assert (outbox.dropped, outbox.size) == (1, LIMIT)
    assert send_all(outbox) == messages(first, b, numbered)
    push(outbox, a, b)
    push(outbox, Batch(batch("room", 900).messages, "room", lossless=True))
    assert outbox.dropped == 3


@dropping_policy
def test_a_client_is_disconnected_when_nothing_is_left_to_drop(policy: SlowConsumer) -> None:
    outbox = Outbox(LIMIT, policy)
    numbered = Batch(batch("room", 600).messages, "room", lossless=True)
    push(outbox, numbered, batch("a", 300))
    assert not outbox.push(numbered)
    assert len(outbox) == 0
    # A batch that was taken counts until it is sent: it cannot give way.
    outbox = Outbox(LIMIT, policy)
    push(outbox, batch("a", 600))
    take(outbox)
    assert not outbox.push(numbered)


@any_policy
def test_it_is_taken_when_all_batches_that_wait_may_be_dropped(policy: SlowConsumer) -> None:
    outbox = Outbox(LIMIT, policy)
    assert outbox.is_taken
    push(outbox, batch("a", 300))
    assert outbox.is_taken == (policy != "disconnect")
    push(outbox, direct(300))
    assert not outbox.is_taken
    take(outbox)
    take(outbox)
    # A batch that is being sent does not wait.
    assert outbox.is_taken
    push(outbox, Batch(batch("room", 300).messages, "room", lossless=True))
    assert not outbox.is_taken
