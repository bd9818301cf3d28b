"""The URL: its parameters, and errors that do not repeat its password."""

from __future__ import annotations

import asyncio
from urllib.parse import urlsplit

import pytest

from hubbub.engines import engine_for
from hubbub.engines.postgres.address import Address
from hubbub.exceptions import InvalidURL
from hubbub.testing.engine_contract import publication
from tests.engines.postgres.nodes import enters, leaves, started


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://user:secret/p8w@localhost/shop",
        "postgresql://user:12/p8w@localhost/shop",
        "postgresql://user:secret#p8w@localhost/shop",
        "postgresql://[user:secret@localhost/shop",
        "postgresql://user:secret",
        "postgresql://user:p8w@localhost:secret/shop",
        "postgresql://user:secret@localhost/shop?pool_size=0",
        "postgresql://user:secret@localhost/shop?pool_size=many",
        "postgresql://user:secret@localhost/shop?statement_cache_size=-1",
        "postgresql://user:secret@localhost/shop?listen=somewhere",
        "postgresql://user:secret@localhost/shop?notify=no",
        "postgresql://user:secret@localhost/shop?notify=",
        "postgresql://user:secret@localhost/shop?notify=off&listen=localhost:5432",
        "postgresql://user:secret@localhost/shop?channel_binding=require",
        "postgresql://user:12@localhost/shop?p8w=secret",
    ],
)
def test_errors_about_a_url_do_not_repeat_its_password(url: str) -> None:
    with pytest.raises(InvalidURL) as caught:
        engine_for(url)
    for part in ("secret", "p8w", "12"):
        assert part not in str(caught.value)


def test_the_error_of_an_unknown_parameter_lists_the_known_ones() -> None:
    with pytest.raises(InvalidURL, match=r"pool_size, .* Is 'notify' meant\?"):
        engine_for("postgresql://localhost/shop?notfy=off")
    with pytest.raises(InvalidURL, match="'listen' and 'notify=off'"):
        engine_for("postgresql://localhost/shop?notify=off&listen=localhost:5432")


@pytest.mark.parametrize(
    ("reason", "end"),
    [
        ("[Errno 111] Connection refused", "Connection refused."),
        ("no answer within 5 s.", "within 5 s."),
        ("no answer within 5 s. Is it busy?", "Is it busy?"),
    ],
)
def test_the_error_about_a_database_is_a_whole_sentence(reason: str, end: str) -> None:
    # The hub appends another one: "To find out more, run: hubbub doctor …".
    error = str(Address("postgresql://localhost/shop").unavailable(reason))
    assert error.endswith(end)


async def test_parameters_of_the_url(postgres_url: str, namespace: str) -> None:
    parts = urlsplit(postgres_url)
    listen = parts.netloc.rpartition("@")[2]
    query = f"statement_cache_size=0&pool_size=2&listen={listen}&application_name=ours"
    async with started(parts._replace(query=query).geturl(), namespace) as (engine, collector):
        await engine.subscribe("chat")
        await asyncio.gather(*(engine.publish(publication("chat", "1")) for _ in range(10)))
        await collector.heard("chat", ["1"] * 10)
        assert await engine.update_presence("lease", 0, [enters("chat", "a")], begin=True)
        assert await engine.presence("chat") == {"a": b"a"}
        assert list(await engine.expire_presence(-1)) == [leaves("chat", "a")]
        assert not await engine.update_presence("lease", 60)
