"""The recent buffer keeps no more than the channel does, and nothing for longer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hubbub.core.frames import Frame, Message
from hubbub.core.history import History
from hubbub.core.publication import Publication
from hubbub.core.ring import RING_BYTES, RING_SIZE, STORM, Ring
from hubbub.protocols.envelope import ENVELOPE
from hubbub.protocols.plain import PLAIN


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def publication(offset: int, time: float = 0.0, size: int = 1) -> Publication:
    return Publication("chat", b"%d" % offset * size, "text", None, f"id{offset}", offset, "e", time)


def append(ring: Ring, *publications: Publication) -> None:
    for each in publications:
        ring.append(Frame(each))


def kept(ring: Ring) -> list[int]:
    return [each.publication.offset for each in ring.newest(RING_SIZE)]


def test_it_keeps_as_many_publications_as_the_channel() -> None:
    ring = Ring(History(size=2, ttl=60))
    append(ring, *map(publication, range(1, 6)))
    assert kept(ring) == [4, 5]
    assert [each.publication.data for each in ring.newest(1)] == [b"5"]


def test_it_keeps_live_publications_as_long_as_the_channel() -> None:
    clock = Clock()
    ring = Ring(History(ttl=0.3), clock)
    append(ring, publication(1))
    clock.now += 0.2
    append(ring, publication(2))
    assert kept(ring) == [1, 2]
    clock.now += 0.2
    assert kept(ring) == [2]
    clock.now += 0.2
    assert kept(ring) == []


def test_publications_read_from_history_are_kept_for_a_moment() -> None:
    clock = Clock()
    ring = Ring(History(ttl=3600), clock)
    ring.prepend(map(publication, (3, 2, 1)))
    assert kept(ring) == [1, 2, 3]
    clock.now += STORM
    assert kept(ring) == []


def test_publications_read_by_a_repair_are_kept_for_a_moment() -> None:
    clock = Clock()
    ring = Ring(History(ttl=3600), clock)
    for offset in (1, 2):
        missed = publication(offset)
        ring.append(Frame(missed), is_live=False)
    append(ring, publication(3))
    clock.now += STORM
    assert kept(ring) == [3]
    # But not for a shorter time than older ones.
    missed = publication(4)
    ring.append(Frame(missed), is_live=False)
    clock.now += 2 * STORM
    assert kept(ring) == [3, 4]
    clock.now += 3600
    assert kept(ring) == []


def test_older_ones_expire_as_much_earlier_as_they_were_accepted_earlier() -> None:
    clock = Clock()
    ring = Ring(History(ttl=5), clock)
    # By a server whose clock is an hour ahead.
    append(ring, publication(3, time=4600))
    clock.now += 1
    ring.prepend((publication(2, time=4598), publication(1, time=4596.5)))
    assert kept(ring) == [1, 2, 3]
    clock.now += 0.5
    assert kept(ring) == [2, 3]
    clock.now += 1.5
    assert kept(ring) == [3]
    clock.now += 2
    assert kept(ring) == []


def test_a_server_whose_clock_was_set_back_does_not_turn_the_order_round() -> None:
    clock = Clock()
    ring = Ring(History(ttl=5), clock)
    append(ring, publication(2, time=100))
    ring.prepend([publication(1, time=200)])
    clock.now += 5
    assert kept(ring) == []


def test_it_is_bounded_in_bytes_and_in_number() -> None:
    ring = Ring()
    append(ring, *(publication(offset, size=100_000) for offset in range(1, 10)))
    assert sum(each.cost for each in ring.newest(RING_SIZE)) <= RING_BYTES
    ring.prepend([publication(0, size=100_000_000)])
    assert kept(ring)[-1] == 9
    assert 0 not in kept(ring)
    ring = Ring()
    append(ring, *(publication(offset) for offset in range(RING_SIZE + 5)))
    assert len(ring) == RING_SIZE


def test_there_is_room_for_older_ones_as_far_as_the_channel_keeps_them() -> None:
    ring = Ring(History(size=3))
    append(ring, publication(5))
    ring.prepend(map(publication, (4, 3, 2)))
    assert kept(ring) == [3, 4, 5]


def test_encodings_count_as_well() -> None:
    ring = Ring()
    append(ring, *(publication(offset, size=100_000) for offset in range(1, 9)))
    assert kept(ring) == list(range(1, 9))
    frames = ring.newest(8)
    for each in frames:
        each.encoded(ENVELOPE.codec)
    assert ring.cost == sum(each.cost for each in frames) > RING_BYTES
    # There is room for fewer now.
    ring.trim()
    assert kept(ring) == [4, 5, 6, 7, 8]
    assert ring.cost <= RING_BYTES
    # A frame that has left counts no more, also when it is encoded once again.
    frames[0].encoded(Other())
    assert ring.cost == sum(each.cost for each in frames[3:])


def test_the_payload_itself_counts_once() -> None:
    ring = Ring()
    append(ring, publication(1, size=100_000))
    before = ring.cost
    (frame,) = ring.newest(1)
    frame.encoded(PLAIN.codec)
    assert ring.cost == before


class Other:
    def encode(self, publication: Publication) -> Message:
        return Message(publication.data * 2, publication)

    def event(self, event: str, channel: str, fields: Mapping[str, Any]) -> Message:
        raise AssertionError("Expected publications only.")
