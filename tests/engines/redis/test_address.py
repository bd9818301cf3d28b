"""URLs of Redis servers, clusters and sentinels."""

from __future__ import annotations

import pytest

from hubbub.engines import engine_for
from hubbub.engines.redis.address import parse_url
from hubbub.exceptions import InvalidURL
from tests.engines.errors import shown


@pytest.mark.parametrize(
    ("url", "where", "db"),
    [
        ("redis://", "localhost:6379", 0),
        ("redis://localhost", "localhost:6379", 0),
        ("REDIS://LOCALHOST/", "LOCALHOST:6379", 0),
        ("redis://127.0.0.1:7000/3", "127.0.0.1:7000", 3),
        ("redis://[::1]:7000/3", "::1:7000", 3),
        ("rediss://h?ssl_check_hostname=false", "h:6379", 0),
        ("redis+unix:///run/redis.sock?db=2", "/run/redis.sock", 2),
        ("redis+cluster://a,b:1", "a:6379, b:1", 0),
        ("redis+sentinel://a,b:1/mymaster/4", "a:26379, b:1", 4),
    ],
)
def test_urls(url: str, where: str, db: int) -> None:
    address = parse_url(url)
    assert (address.where, address.options["db"]) == (where, db)
    engine_for(url)


@pytest.mark.parametrize(
    ("url", "name"),
    [
        ("redis://:s3cret@cache/3", "Redis at cache:6379"),
        ("rediss://:s3cret@cache:7000", "Redis at cache:7000"),
        ("redis+unix://:s3cret@/run/redis.sock", "Redis at /run/redis.sock"),
        ("redis+cluster://:s3cret@a,b:1", "the Redis cluster at a:6379, b:1"),
        ("redis+sentinel://:s3cret@a,b:1/mymaster", "Redis behind the sentinels at a:26379, b:1"),
    ],
)
def test_messages_name_the_servers_without_the_password(url: str, name: str) -> None:
    assert str(parse_url(url)) == name


def test_credentials_are_unquoted() -> None:
    options = parse_url("redis://a%40b:p%2Fw@h").options
    assert (options["username"], options["password"]) == ("a@b", "p/w")


@pytest.mark.parametrize(
    "url",
    [
        "redis://user:s3cret/0",
        "redis://h:s3cret@h:port/0",
        "redis://:s3cret@h/x",
        "redis://:s3cret@h/-1",
        "redis://:s3cret@h:1:2",
        "redis://:s3cret@[h/0",
        "redis://:s3cret@h?s3cret",
        "redis://:s3cret@h?password=s3cret",
        "redis://:s3cret#x@h",
        "redis://a,b:s3cret",
        "redis+unix://s3cret@h/x",
        "redis+unix://",
        "redis+cluster://:s3cret@a,b/1",
        "redis+cluster://:s3cret@",
        "redis+sentinel://:s3cret@a,b",
        "redis+sentinel://:s3cret@a,b/service/x",
    ],
)
def test_a_url_that_cannot_be_understood_is_not_repeated(url: str) -> None:
    with pytest.raises(InvalidURL) as info:
        engine_for(url)
    assert "s3cret" not in shown(info.value)
