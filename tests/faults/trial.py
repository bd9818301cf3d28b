"""A trial: faults on a stage, and a check of all messages."""

from __future__ import annotations

from asyncio import TaskGroup
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from random import Random
from types import TracebackType
from typing import Generic, Self

from tests.faults.brokers import B
from tests.faults.catalogue import WELL, Fault
from tests.faults.ledger import Counts
from tests.faults.stage import Stage


class Theatre(Generic[B]):
    """Plays faults one after another, on one stage until a trial fails.

    :param build: builds a stage and its broker.
    """

    def __init__(self, build: Callable[[], AbstractAsyncContextManager[tuple[Stage, B]]]) -> None:
        self._build = build
        self._exits = AsyncExitStack()
        self._built: tuple[Stage, B] | None = None

    async def play(self, seed: str, *faults: Fault[B]) -> Counts:
        """Publish, play the faults at the same time, wait until publishing continues, and check all messages.

        :param seed: of all random choices.
        :raises AssertionError: a message was lost, doubled, out of order, or never published.
        """
        if self._built is None:
            self._built = await self._exits.enter_async_context(self._build())
        stage, broker = self._built
        try:
            stage.random = Random(seed)
            stage.publish(min(fault.pause for fault in faults))
            await stage.accepted(WELL)
            async with TaskGroup() as group:
                for fault in faults:
                    group.create_task(fault.strike(stage, broker))
            await stage.joined()
            await stage.accepted(WELL)
            problems, counts = await stage.settle(
                max((fault.loss for fault in faults), key=lambda loss: loss.value)
            )
            assert not problems, "\n".join(
                [f"seed {seed}: {counts}", *problems[:20], f"{len(problems)} in all."]
            )
        except BaseException:
            print(f"Output of the workers:\n{stage.server.log[-10_000:]}")
            # The next trial gets a new stage.
            await self.close()
            raise
        return counts

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        self._built = None
        await self._exits.aclose()
