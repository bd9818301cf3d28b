"""A publication that cannot be stored fails alone, although others are accepted together with it."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from hubbub.core.publication import Publication
from hubbub.engines.postgres import PostgresEngine
from hubbub.testing.engine_contract import HISTORY, Collector, publication

# A size that no database takes. (Not a History, which may refuse it itself.)
TOO_LARGE: Any = SimpleNamespace(size=2**63, ttl=60.0)

WRONG: dict[str, tuple[Publication, Any, str | None]] = {
    "key with a NUL": (publication("chat", "wrong"), HISTORY, "a\0b"),
    "key that is not UTF-8": (publication("chat", "wrong"), HISTORY, "\ud800"),
    "key that is too long for an index": (
        publication("chat", "wrong"),
        HISTORY,
        "".join(map(chr, range(0x4E00, 0x9000))),
    ),
    "exclude with a NUL": (publication("chat", "wrong", exclude="a\0b"), HISTORY, None),
    "history that is too large": (publication("chat", "wrong"), TOO_LARGE, None),
    "history of nothing": (publication("chat", "wrong"), SimpleNamespace(size=0, ttl=60.0), None),
}


@pytest.mark.parametrize("name", WRONG)
async def test_only_the_wrong_publication_of_a_batch_fails(
    name: str, node: tuple[PostgresEngine, Collector]
) -> None:
    engine, collector = node
    await engine.subscribe("chat", HISTORY)
    publishing = [engine.publish(publication("chat", str(number)), HISTORY) for number in range(1, 21)]
    publishing[5:5] = [engine.publish(*WRONG[name])]
    answers = await asyncio.gather(*publishing, return_exceptions=True)
    wrong = answers.pop(5)
    assert isinstance(wrong, ValueError)
    assert str(wrong).startswith("PostgreSQL refuses an argument: ")
    assert [getattr(each, "offset", each) for each in answers] == list(range(1, 21))
    await collector.heard("chat", [str(number) for number in range(1, 21)])
    assert (collector.disconnects, collector.reconnects) == (0, 0)


async def test_a_wrong_argument_is_no_outage(node: tuple[PostgresEngine, Collector]) -> None:
    engine, collector = node
    with pytest.raises(ValueError, match="PostgreSQL refuses"):
        await engine.subscribe("chat", TOO_LARGE)
    with pytest.raises(ValueError, match="PostgreSQL refuses"):
        await engine.history("a\0b")
    assert (collector.disconnects, collector.reconnects) == (0, 0)
