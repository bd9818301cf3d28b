"""A trial: faults on a stage, and the question what became of the messages."""

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
    """Where faults are played one after another, on the same stage as long as that stands.

    :param build: makes a stage and what its engine talks to.
    """

    def __init__(self, build: Callable[[], AbstractAsyncContextManager[tuple[Stage, B]]]) -> None:
        self._build = build
        self._exits = AsyncExitStack()
        self._built: tuple[Stage, B] | None = None

    async def play(self, seed: str, *faults: Fault[B]) -> Counts:
        """Publish, let faults happen, all at once, see that it goes on, and check.

        :param seed: of what is left to chance.
        :raises AssertionError: something was lost, doubled, out of order, or made up.
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
            print(f"The workers said:\n{stage.server.log[-10_000:]}")
            # The next one is not to suffer from it.
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
