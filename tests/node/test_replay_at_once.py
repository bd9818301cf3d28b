"""Replay to a protocol session, which recovers with a single reply or not at all."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence

import pytest

from hubbub import History, Position
from hubbub.core.forms import Form
from hubbub.core.frames import FRAME_OVERHEAD, Frame
from hubbub.core.publication import START
from hubbub.core.subscriber import Start
from hubbub.node.node import Node
from hubbub.node.replay import PIECE
from hubbub.protocols.envelope import ENVELOPE
from hubbub.protocols.plain import PLAIN
from tests.clock import FakeClock
from tests.node.flaky_engine import FlakyEngine, running, say
from tests.subscriber import Subscriber

SIZE = 1000

#: More publications than go out in one piece, and their bytes.
COUNT = 3 * PIECE // SIZE
BYTES = COUNT * (SIZE + FRAME_OVERHEAD)


class Session(Subscriber):
    """A subscriber that takes missed publications with its reply only.

    :param room: bytes that the reply may have.
    """

    recovers_in_pieces = False

    def __init__(self, room: int) -> None:
        super().__init__()
        self.room = room
        self.replies: list[tuple[Start, list[str]]] = []

    async def ready(self) -> int:
        return self.room

    def joined(self, channel: str, form: Form, start: Start, missed: Sequence[Frame]) -> None:
        self.replies.append((start, [frame.publication.data.decode() for frame in missed]))


@pytest.fixture
async def node() -> AsyncIterator[Node]:
    clock = FakeClock()
    async with running(FlakyEngine(clock), History(size=2000), clock) as node:
        yield node


async def test_everything_missed_comes_with_the_reply_if_there_is_room(node: Node) -> None:
    texts = [f"{number}".ljust(SIZE, ".") for number in range(COUNT)]
    await say(node, *texts)
    session = Session(BYTES)
    position = await node.join("chat", session, since=START, form=PLAIN)
    assert session.replies == [(Start(Position(0, position.epoch), recovered=True), texts)]
    await say(node, "live")
    await session.hears("live")


async def test_nothing_missed_comes_with_the_reply_if_there_is_no_room(node: Node) -> None:
    await say(node, *["".ljust(SIZE, ".")] * COUNT)
    session = Session(BYTES - 1)
    position = await node.join("chat", session, since=START, form=ENVELOPE)
    assert position.offset == COUNT
    assert session.replies == [(Start(position, recovered=False), [])]
