"""The stage of a fault: workers, clients that receive, and publishers."""

from __future__ import annotations

import asyncio
import os
import signal
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path
from random import Random
from secrets import token_hex

import httpx2

from hubbub import Position
from tests.clients import DEADLINE, eventually
from tests.faults.ledger import Counts, Fate, Ledger, Loss, Message
from tests.faults.listeners import Listener
from tests.faults.publishers import OverHTTP, OverWebSocket, Publisher
from tests.uvicorn_process import ROOT, Server, is_running, serve

#: Number of clients that receive, and of those that publish.
CLIENTS, PUBLISHERS = 40, 4

#: Seconds between two messages of a publisher, on average.
PAUSE = 0.05


class Stage:
    """Workers with clients that receive and publish.

    :param url: the URL of the engine.
    :param log: the file for the output of the workers.
    :param workers: their number.
    """

    def __init__(self, url: str, log: Path, workers: int) -> None:
        #: Makes all random choices.
        self.random = Random()
        self.namespace = f"test-{token_hex(4)}"
        self.listeners: list[Listener] = []
        self.publishers: list[Publisher] = []
        self._url = url
        self._log = log
        self._workers = workers
        self._server: Server | None = None
        self._serving = AsyncExitStack()
        # An act begins with publishing. These are the number of this one, the position of the channel at its
        # beginning, and messages of earlier acts that may still arrive.
        self._acts = 0
        self._begun = Position(0, "")
        self._unknown: list[Message] = []

    # Workers

    @property
    def server(self) -> Server:
        assert self._server is not None
        return self._server

    async def start(self, port: int | None = None) -> None:
        """Start the workers, and wait until each of them serves."""
        self._server = await self._serving.enter_async_context(
            serve(
                "tests.apps.streams:app",
                self._log,
                args=["--workers", str(self._workers), "--drain-seconds", "2", "--log-level", "warning"],
                port=port,
                cwd=ROOT,
                probe="/pid",
                env={"HUBBUB_TEST_URL": self._url, "HUBBUB_TEST_NAMESPACE": self.namespace},
            )
        )
        pids: set[int] = set()

        async def all_serve() -> bool:
            pids.add((await self.server.get_json("/pid"))["pid"])
            return len(pids) == self._workers

        await eventually(all_serve, DEADLINE)

    async def restart(self) -> None:
        """Stop the workers as a deployment does, and start new ones on the same port."""
        await self.server.stop()
        await self._serving.aclose()
        await self.start(self.server.port)

    async def end(self) -> None:
        """Kill the workers."""
        if self._server is not None:
            await self._server.stop(signal.SIGKILL)
        await self._serving.aclose()

    def pids(self) -> list[int]:
        """Return the workers that have clients."""
        return sorted({each.pids[-1] for each in self.listeners if each.is_joined.is_set()})

    async def some_pid(self) -> int:
        """Return one of the workers that have clients, at random."""
        await eventually(lambda: bool(self.pids()), DEADLINE)
        return self.random.choice(self.pids())

    def signal(self, pid: int, sig: signal.Signals) -> None:
        """Send a signal to a process, which another fault may have killed."""
        with suppress(ProcessLookupError):
            os.kill(pid, sig)

    async def kill(self, pid: int) -> None:
        """Kill a worker, and wait until its clients are with other workers."""
        self.signal(pid, signal.SIGKILL)
        await eventually(lambda: pid not in self.pids(), DEADLINE)
        await self.joined()

    @asynccontextmanager
    async def paused(self, pid: int) -> AsyncIterator[None]:
        """Pause a worker and its supervisor, which would replace it, as when a machine is suspended."""
        supervisor = self.server.process.pid
        self.signal(supervisor, signal.SIGSTOP)
        self.signal(pid, signal.SIGSTOP)
        try:
            yield
        finally:
            self.signal(pid, signal.SIGCONT)
            # The worker has to answer before the supervisor looks at it, and finds it late. Another fault may
            # have killed all workers meanwhile: no worker answers then before the supervisor continues.
            await eventually(lambda: self._answers_or_is_gone(pid))
            self.signal(supervisor, signal.SIGCONT)

    async def _answers_or_is_gone(self, pid: int) -> bool:
        if not is_running(pid):
            return True
        try:
            return "pid" in await self.server.get_json("/pid")
        except httpx2.TransportError:
            return False

    # Clients and publishers

    async def admit(self) -> None:
        """Connect the clients."""
        for number in range(CLIENTS):
            self.listeners.append(Listener(f"{self.server.ws}/chat", f"client {number}", self._fork()))
        await self.joined()

    async def joined(self) -> None:
        """Wait until every client is in the channel."""
        async with asyncio.timeout(DEADLINE):
            for listener in self.listeners:
                await listener.is_joined.wait()

    def publish(self, pause: float = PAUSE) -> None:
        """Begin to publish.

        :param pause: seconds between two messages of a publisher, on average.
        """
        self._acts += 1
        base = f"127.0.0.1:{self.server.port}"
        for number in range(PUBLISHERS):
            # The two ways in turn.
            way = OverHTTP(base) if number % 2 == 0 else OverWebSocket(base)
            self.publishers.append(
                Publisher(
                    way,
                    f"{self._acts}-{number}",
                    self._fork(),
                    pause,
                    is_patient=number % 4 < 2,
                    is_received=lambda text: any(text in each.received for each in self.listeners),
                )
            )

    async def accepted(self, count: int) -> None:
        """Wait until ``count`` more messages of each publisher are accepted."""
        async with asyncio.timeout(DEADLINE):
            await asyncio.gather(*(publisher.progress(count) for publisher in self.publishers))

    async def leave(self) -> None:
        for listener in self.listeners:
            await listener.stop()
        for publisher in self.publishers:
            await publisher.stop()

    def _fork(self) -> Random:
        return Random(self.random.random())

    # Checking

    async def settle(self, loss: Loss) -> tuple[list[str], Counts]:
        """End the act: stop publishing, wait until every client is at the position of the channel, and check.

        :param loss: the loss of the engine.
        :return: the errors, and the counts.
        """
        async with asyncio.timeout(DEADLINE):
            for publisher in self.publishers:
                await publisher.finish()
        top = Position(0, "")
        kept: list[tuple[Position, str]] = []

        async def all_there() -> bool:
            nonlocal top, kept
            try:
                answer = await self.server.get_json("/history?offset={}&epoch={}".format(*self._begun))
            except httpx2.TransportError:
                return False
            if "unavailable" in answer:
                return False
            top = Position(*answer["position"])
            kept = [
                (Position(offset, epoch), text)
                for offset, epoch, text in answer["kept"]
                if not self._is_settled(text)
            ]
            return all(each.is_at(top) for each in self.listeners)

        # If a client does not arrive there, the ledger names it.
        with suppress(TimeoutError):
            await eventually(all_there, DEADLINE)
        messages = [message for publisher in self.publishers for message in publisher.messages]
        accounts = [each.account for each in self.listeners]
        ledger = Ledger([*messages, *self._unknown], accounts, kept, top, loss)
        problems = ledger.problems()
        fates = Counter(message.fate for message in messages)
        counts = Counts(
            published=len(messages),
            accepted=fates[Fate.ACCEPTED],
            unknown=fates[Fate.UNKNOWN],
            refused=fates[Fate.REFUSED],
            retries=sum(each.retries for each in self.publishers),
            suppressed=sum(each.suppressed for each in self.publishers),
            delivered=sum(len(run.texts) for account in accounts for run in account.runs),
            resumes=sum(each.resumes for each in self.listeners),
            breaks=sum(account.breaks for account in accounts),
            losses=sum(len(account.runs) - 1 for account in accounts),
            notified=ledger.notified,
            silence=max(each.silence for each in self.listeners),
        )
        await self._turn_page(top)
        return problems, counts

    def _is_settled(self, text: str) -> bool:
        """Return whether a message is of an earlier act, and its outcome is known.

        The history of a stream is read again if it continues in a new epoch.
        """
        act = text.partition("-")[0]
        is_known = act.isdecimal() and int(act) < self._acts
        return is_known and all(message.text != text for message in self._unknown)

    async def _turn_page(self, top: Position) -> None:
        """Begin new accounts, and keep of the old messages only those with an unknown outcome."""
        for publisher in self.publishers:
            self._unknown += [each for each in publisher.messages if each.fate is Fate.UNKNOWN]
            await publisher.stop()
        self.publishers.clear()
        for listener in self.listeners:
            listener.begin()
        self._begun = top


@asynccontextmanager
async def stage(url: str, log: Path, workers: int = 2) -> AsyncIterator[Stage]:
    """Run a stage with clients for the length of a block."""
    stage = Stage(url, log, workers)
    try:
        await stage.start()
        await stage.admit()
        yield stage
    finally:
        await stage.leave()
        await stage.end()
