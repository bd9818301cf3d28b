from __future__ import annotations

from typing import Any

import pytest

from hubbub import Hub
from hubbub.security.hosts import parse_hosts


def includes(hosts: list[str], host: str | None) -> bool:
    parsed = parse_hosts(hosts)
    assert parsed is not None
    return parsed.include(host)


@pytest.mark.parametrize(
    ("given", "host"),
    [
        ("example.com", "example.com"),
        ("example.com", "example.com:8000"),
        ("example.com", "EXAMPLE.com."),
        ("Example.COM.", "example.com.:443"),
        ("localhost", "localhost:8000"),
        ("my_host-1", "my_host-1"),
        ("127.0.0.1", "127.0.0.1:8000"),
        ("::1", "[::1]"),
        ("[::1]", "[::1]:8000"),
        ("::1", "[0:0:0:0:0:0:0:1]:80"),
        ("10.0.0.0/8", "10.1.2.3:80"),
        ("10.0.0.1/8", "10.1.2.3:80"),
        ("0.0.0.0/0", "192.168.1.2"),
        ("::/0", "[fe80::1]"),
    ],
)
def test_a_host_that_is_named_is_included(given: str, host: str) -> None:
    assert includes(["other.example", given], host)


@pytest.mark.parametrize(
    "host",
    [
        *("example.org", "www.example.com", "example.com.evil.example", "evil.example:example.com"),
        *("example.com@evil.example", "example.com/", "example.com, evil.example", "", ":80", "[]", "."),
        *("10.0.0.1", "[::1]", "[::1", "::1", "2130706433", "127.1", None),
    ],
)
def test_any_other_host_is_not_included(host: str | None) -> None:
    assert not includes(["example.com", "127.0.0.0/8"], host)


def test_nothing_is_checked_by_default() -> None:
    assert parse_hosts(None) is None


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ("example.com", "Expected hosts as a list of host names, but got 'example.com'"),
        (7, "Expected hosts as a list of host names, but got 7"),
        ([], "at least one host"),
        (["https://example.com/chat"], "write 'example.com'"),
        (["https://user@Example.com:8000"], "write 'example.com'"),
        (["example.com:8000"], "write 'example.com'"),
        (["http://[::1]:8000"], "write '::1'"),
        (["example.com/"], "write 'example.com'"),
        (["*.example.com"], "There are no wildcards"),
        (["*"], "There are no wildcards"),
        (["bücher.example"], "xn--"),
        ([""], "Expected a host name such as"),
        ([None], "Expected a host name such as"),
        ([7], "Expected a host name such as"),
    ],
)
def test_an_entry_that_no_request_could_match_is_an_error(wrong: Any, message: str) -> None:
    with pytest.raises(ValueError, match=r"^Expected ") as caught:
        Hub(hosts=wrong)
    assert message in str(caught.value)
