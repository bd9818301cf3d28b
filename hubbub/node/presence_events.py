"""A watch: tells members of a channel on this node who comes to it and who leaves it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import get_args

from msgspec import json

from hubbub.core.fanout import FanOut
from hubbub.core.forms import Form
from hubbub.core.frames import EncodedFrame
from hubbub.core.presence import Changes, PresenceState, Users
from hubbub.core.subscriber import CallbackSubscriber, Subscriber, deliver
from hubbub.engines.base import Engine
from hubbub.engines.reconnect import Backoff
from hubbub.exceptions import EngineUnavailable, InvalidData
from hubbub.node.presence import companion, decode_members, decode_news
from hubbub.node.subscriptions import Subscriptions
from hubbub.protocols.websocket import WebSocketMessage
from hubbub.types import JoinLeave, PresenceEntry

logger = logging.getLogger("hubbub.node.presence_events")

#: Seconds between two looks for somebody who is missing in an engine that has just come back.
UNSETTLED = 1.0


class PresenceEvents:
    """Who is in one channel, for those on this node who want to know.

    :param channel: the channel.
    :param engine: where who is there can be read.
    :param subscriptions: the channels that the node is in.
    :param is_settled: whether the engine is known to have everybody.
    """

    def __init__(
        self,
        channel: str,
        engine: Engine,
        subscriptions: Subscriptions,
        is_settled: Callable[[], bool],
    ) -> None:
        self.channel = channel
        self._engine = engine
        self._subscriptions = subscriptions
        self._is_settled = is_settled
        self._roster, self._users = PresenceState(), Users()
        # Lossless: a client that does not keep up is disconnected rather than left with wrong entries.
        self._fan_outs: dict[JoinLeave, FanOut] = {
            what: FanOut(channel, subscriptions.schedule, lossless=True) for what in get_args(JoinLeave)
        }
        # The ids of members that are about to be added.
        self._expected: set[str] = set()
        self._listener = CallbackSubscriber(f"watch:{channel}", self._on_news)
        # Reads what the engine has, until nothing is in doubt.
        self._looking: asyncio.Task[None] | None = None
        self._look_again = False

    def __len__(self) -> int:
        """How many are told, or about to be."""
        return len(self._expected) + sum(map(len, self._fan_outs.values()))

    async def open(self) -> None:
        """
        :raises EngineUnavailable: the engine cannot be reached.
        """
        await self._subscriptions.join(companion(self.channel), self._listener)
        try:
            await self._read()
        except BaseException:
            self._subscriptions.leave(companion(self.channel), self._listener)
            raise

    def close(self) -> None:
        self._subscriptions.leave(companion(self.channel), self._listener)
        if self._looking is not None:
            self._looking.cancel()

    def expect(self, member: Subscriber) -> None:
        """``member`` is about to be added."""
        self._expected.add(member.id)

    def add(self, member: Subscriber, what: JoinLeave, form: Form) -> None:
        """Tell ``member`` who is here, and from now on who comes and who leaves."""
        self._expected.discard(member.id)
        self._fan_outs[what].add(member, form)
        members = self._users.members if what == "users" else self._roster.members
        frame = _frame("presence", self.channel, members)
        deliver(form.batch((frame,), self.channel, lossless=True), (member,))

    def remove(self, member: Subscriber) -> None:
        self._expected.discard(member.id)
        for fan_out in self._fan_outs.values():
            fan_out.remove(member)

    def tell(self, connection: str, member: PresenceEntry) -> None:
        """Somebody has come."""
        self._tell(self._roster.tell([(connection, member)]))

    def look(self) -> None:
        """Compare with what the engine has: something may have been missed."""
        self._look_again = True
        if self._looking is None:
            self._looking = asyncio.get_running_loop().create_task(self._look())
            self._looking.add_done_callback(self._looked)

    # Inside

    def _on_news(self, packed: bytes) -> None:
        try:
            news = decode_news(packed)
        except InvalidData as exc:
            logger.warning("Ignored news of presence in %r: %s", self.channel, exc)
            return
        if news:
            self._tell(self._roster.tell(news))
        else:
            self.look()

    async def _look(self) -> None:
        backoff = Backoff()
        while self._look_again:
            self._look_again = False
            try:
                is_certain = await self._read()
            except EngineUnavailable as exc:
                logger.debug("Could not read who is in %r: %s", self.channel, exc)
                self._look_again = True
                await backoff.wait()
            else:
                if not is_certain:
                    self._look_again = True
                    await asyncio.sleep(UNSETTLED)

    def _looked(self, task: asyncio.Task[None]) -> None:
        self._looking = None
        if not task.cancelled() and (exc := task.exception()):
            logger.error("Could not read who is in %r.", self.channel, exc_info=exc)

    async def _read(self) -> bool:
        """Take what the engine has. Returns ``False`` if somebody is missing there who may still be here."""
        self._roster.begin_reading()
        is_settled = self._is_settled()
        found = decode_members(self.channel, await self._engine.presence(self.channel))
        self._tell(self._roster.show(found, is_complete=is_settled))
        return is_settled or all(member.connection in found for member in self._roster.members)

    def _tell(self, changes: Changes) -> None:
        by_what = {"connections": changes, "users": self._users.merge(changes)}
        for what, fan_out in self._fan_outs.items():
            joined, left = by_what[what]
            # Who has left first: a page that is loaded again leaves and comes.
            for event, members in (("leave", left), ("join", joined)):
                if members and len(fan_out):
                    fan_out.put_aside(_frame(event, self.channel, members))


def _frame(event: str, channel: str, members: list[PresenceEntry]) -> EncodedFrame:
    data = json.encode({"type": event, "channel": channel, "entries": members})
    return EncodedFrame(channel, WebSocketMessage("json", data))
