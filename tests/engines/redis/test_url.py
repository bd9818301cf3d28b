"""URLs of Redis."""

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
        ("redis+cluster://a,b:1", "the cluster at a:6379, b:1", 0),
        ("redis+sentinel://a,b:1/mymaster/4", "the sentinels at a:26379, b:1", 4),
    ],
)
def test_urls(url: str, where: str, db: int) -> None:
    target = parse_url(url)
    assert (target.where, target.options["db"]) == (where, db)
    engine_for(url)


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
