from __future__ import annotations

import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hubbub.security.origins import is_allowed, parse_origins

NONE = parse_origins([])


# The page's own server


@pytest.mark.parametrize(
    ("origin", "host"),
    [
        ("http://example.com", "example.com"),
        ("https://example.com", "example.com"),
        ("http://localhost:8000", "localhost:8000"),
        ("http://127.0.0.1:8000", "127.0.0.1:8000"),
        ("http://[::1]:8000", "[::1]:8000"),
        ("http://[::1]", "[::1]"),
        ("https://Example.COM", "eXample.com"),
        ("HTTPS://example.com", "example.com"),
    ],
)
def test_a_page_may_connect_to_its_own_host(origin: str, host: str) -> None:
    assert is_allowed(origin, host, NONE)


@pytest.mark.parametrize(
    ("origin", "host"),
    [
        ("http://example.com", "example.com:80"),
        ("http://example.com:80", "example.com"),
        ("https://example.com", "example.com:443"),
        ("https://example.com:443", "example.com"),
        ("http://[::1]", "[::1]:80"),
        ("https://[::1]:443", "[::1]"),
    ],
)
def test_a_default_port_may_be_left_out(origin: str, host: str) -> None:
    assert is_allowed(origin, host, NONE)


@pytest.mark.parametrize(
    ("origin", "host"),
    [
        ("https://evil.com", "example.com"),
        ("https://www.example.com", "example.com"),
        ("https://example.com", "www.example.com"),
        ("https://example.com.evil.com", "example.com"),
        ("https://evilexample.com", "example.com"),
        ("https://example.com@evil.com", "example.com"),
        ("https://evil.com\\@example.com", "example.com"),
        ("https://[::2]", "[::1]"),
        ("https://[2001:db8::80]", "[2001:db8:]"),
    ],
)
def test_a_page_of_another_host_may_not_connect(origin: str, host: str) -> None:
    assert not is_allowed(origin, host, NONE)


@pytest.mark.parametrize(
    ("origin", "host"),
    [
        ("http://example.com:3000", "example.com:8000"),
        ("http://example.com:3000", "example.com"),
        ("http://example.com", "example.com:3000"),
        ("http://example.com:443", "example.com"),
        ("https://example.com:80", "example.com"),
        ("http://example.com", "example.com:443"),
        ("https://example.com", "example.com:80"),
        ("http://[::1]:3000", "[::1]"),
    ],
)
def test_a_page_from_another_port_may_not_connect(origin: str, host: str) -> None:
    assert not is_allowed(origin, host, NONE)


def test_without_a_host_header_no_page_is_from_the_same_host() -> None:
    assert not is_allowed("http://example.com", None, NONE)
    assert is_allowed("http://example.com", None, parse_origins(["http://example.com"]))


@pytest.mark.parametrize(
    "origin",
    [
        "",
        "null",
        "*",
        "example.com",
        "//example.com",
        "http:example.com",
        "http://",
        "://example.com",
        "file://",
        "file:///",
        "http://example.com/",
        "http://example.com/page",
        "http://example.com?query",
        "http://example.com#fragment",
        "http://example.com http://example.com",
        "http://example.com, http://example.com",
        "http://exam\nple.com",
        "http://[::1",
        "http://]",
        "\x00",
        "\ud800",
    ],
)
@pytest.mark.parametrize("host", ["example.com", "", "null", "*", "[::1"])
def test_a_text_that_is_no_origin_is_from_no_host(origin: str, host: str) -> None:
    assert not is_allowed(origin, host, NONE)


@given(st.text(), st.none() | st.text())
def test_no_header_makes_the_check_raise(origin: str, host: str | None) -> None:
    assert is_allowed(origin, host, NONE) in (True, False)
    assert is_allowed(f"http://{origin}", host, NONE) in (True, False)


# allow_origins


def test_an_allowed_page_may_connect_and_others_still_may_not() -> None:
    allowed = parse_origins(["https://example.com", "http://localhost:5173"])
    assert is_allowed("https://example.com", "api.example.com", allowed)
    assert is_allowed("http://localhost:5173", "localhost:8000", allowed)
    assert is_allowed("https://api.example.com", "api.example.com", allowed)
    assert not is_allowed("https://www.example.com", "api.example.com", allowed)
    assert not is_allowed("http://localhost:5174", "localhost:8000", allowed)
    assert not is_allowed("null", "api.example.com", allowed)


def test_the_scheme_of_an_allowed_page_counts() -> None:
    # Over http, an attacker in the same café could change the page.
    assert not is_allowed("http://example.com", "api.example.com", parse_origins(["https://example.com"]))


@pytest.mark.parametrize(
    "entry",
    ["https://Example.com", "HTTPS://example.com", "https://example.com:443", " https://example.com "],
)
@pytest.mark.parametrize("origin", ["https://example.com", "https://EXAMPLE.com", "https://example.com:443"])
def test_case_and_default_ports_do_not_count(entry: str, origin: str) -> None:
    assert is_allowed(origin, "api.example.com", parse_origins([entry]))


def test_apps_with_a_scheme_of_their_own_can_be_allowed() -> None:
    allowed = parse_origins(["capacitor://localhost", "chrome-extension://abcdef"])
    assert is_allowed("capacitor://localhost", "example.com", allowed)
    assert is_allowed("chrome-extension://abcdef", "example.com", allowed)
    assert not is_allowed("ionic://localhost", "example.com", allowed)


@pytest.mark.parametrize(
    "origin", ["https://example.com", "http://[::1]:1", "null", "file://", "", "garbage"]
)
def test_a_star_allows_every_page(origin: str) -> None:
    allowed = parse_origins(["*"])
    assert is_allowed(origin, "api.example.com", allowed)
    assert is_allowed(origin, None, allowed)


def test_null_is_allowed_only_by_its_name() -> None:
    # Pages from files and sandboxed frames say "null", and so may any page that puts itself into one.
    assert is_allowed("null", "example.com", parse_origins(["null"]))
    assert not is_allowed("null", "null", parse_origins(["https://example.com"]))


def test_any_iterable_of_origins_is_taken() -> None:
    assert parse_origins(iter(["null", "https://example.com"])) == {"null", "https://example.com"}
    assert parse_origins(()) == frozenset()


@pytest.mark.parametrize(
    "entry",
    [
        "https://example.com/",
        "https://example.com/app",
        "https://example.com?query",
        "example.com",
        "localhost:5173",
        "https://",
        "file://",
        "",
        "https://one.com, https://two.com",
        "https://one.com https://two.com/",
        "https://one.com,two.com",
        "https://one.com two.com",
        "https://[::1",
        "https://*.example.com",
        "https://user@example.com",
        "https://example.com:",
        "https://example.com:port",
        "https://example.com:99999",
        "https://bücher.example",
        None,
    ],
)
def test_an_entry_that_no_browser_could_match_is_refused(entry: Any) -> None:
    pattern = (
        r"^Expected an origin such as 'https://example\.com' .*without a path or a slash at the end, but got "
    )
    with pytest.raises(ValueError, match=pattern + re.escape(repr(entry))):
        parse_origins(["https://fine.com", entry])


@pytest.mark.parametrize("origins", ["https://example.com", "*", ""])
def test_a_string_instead_of_a_list_is_refused(origins: Any) -> None:
    # Iterated, it would be a list of characters, "*" among them.
    with pytest.raises(
        ValueError, match=f"as a list of origins, but got the string {re.escape(repr(origins))}"
    ):
        parse_origins(origins)
