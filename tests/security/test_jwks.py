"""Keys from a URL: fetched once, kept, and fetched again when that is due, beside the event loop."""

from __future__ import annotations

import asyncio
import json
import multiprocessing
import socket
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import given
from hypothesis import strategies as st

from hubbub.security import jwks
from hubbub.security.jwks import FRESH, INTERVAL, JWKS, MAX_AGE, MAX_KEYS, RETRY, KeysUnavailable, parse_keys
from tests.clients import DEADLINE, eventually
from tests.clock import FakeClock
from tests.security.jwks_server import Provider, provider
from tests.security.signing import ec_key, ed_key, jwk, rsa_key

RS256 = ("RS256",)


@pytest.fixture(autouse=True)
def _patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """Give fetches more time: this machine may be busy."""
    monkeypatch.setattr(jwks, "TIMEOUT", DEADLINE)


@pytest.fixture
def server() -> Iterator[Provider]:
    with provider() as state:
        state.keys = [jwk(rsa_key(1), "one")]
        yield state


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock(1000.0)


@pytest.fixture
def keys(server: Provider, clock: FakeClock) -> JWKS:
    return JWKS(server.url, RS256, clock=clock)


async def fetched() -> None:
    """Wait until no fetch is running."""
    await eventually(lambda: all(thread.name != "hubbub-jwks" for thread in threading.enumerate()))


# Fetching


async def test_the_keys_are_fetched_once_when_they_are_needed(server: Provider, keys: JWKS) -> None:
    assert server.requests == 0
    found = await asyncio.gather(*(keys.find("one", "RS256") for _ in range(20)))
    assert found == [rsa_key(1).public_key()] * 20
    assert await keys.find("one", "RS256") is not None
    assert server.requests == 1


async def test_an_unknown_key_fetches_at_most_every_30_seconds(
    server: Provider, keys: JWKS, clock: FakeClock
) -> None:
    await keys.find("one", "RS256")
    server.keys.append(jwk(rsa_key(2), "two"))
    clock.advance(INTERVAL - 1)
    for _ in range(5):
        assert await keys.find("two", "RS256") is None
    assert server.requests == 1
    clock.advance(1)
    assert await keys.find("two", "RS256") == rsa_key(2).public_key()
    assert await keys.find("three", "RS256") is None
    assert server.requests == 2
    clock.advance(INTERVAL)
    assert await asyncio.gather(*(keys.find(f"unknown {n}", "RS256") for n in range(20))) == [None] * 20
    assert server.requests == 3


async def test_a_key_that_was_withdrawn_does_not_count_any_more(
    server: Provider, keys: JWKS, clock: FakeClock
) -> None:
    await keys.find("one", "RS256")
    server.keys = [jwk(rsa_key(2), "two")]
    clock.advance(FRESH + 1)
    # The fetch is in the background: this client does not wait for it.
    server.answers.clear()
    assert await keys.find("one", "RS256") is not None
    server.answers.set()
    await fetched()
    assert await keys.find("one", "RS256") is None
    assert server.requests == 2


async def test_the_event_loop_runs_while_keys_are_fetched(server: Provider, keys: JWKS) -> None:
    server.answers.clear()
    finding = asyncio.create_task(keys.find("one", "RS256"))
    await eventually(server.asked.is_set)
    assert not finding.done()
    server.answers.set()
    assert await finding is not None


async def test_a_client_that_leaves_does_not_end_the_fetch_for_others(server: Provider, keys: JWKS) -> None:
    server.answers.clear()
    leaving = asyncio.create_task(keys.find("one", "RS256"))
    staying = asyncio.create_task(keys.find("one", "RS256"))
    await asyncio.to_thread(server.asked.wait, DEADLINE)
    leaving.cancel()
    with pytest.raises(asyncio.CancelledError):
        await leaving
    server.answers.set()
    assert await staying is not None
    assert server.requests == 1


def test_several_event_loops_share_the_keys(server: Provider, keys: JWKS) -> None:
    server.answers.clear()
    found: list[Any] = []
    threads = [
        threading.Thread(target=lambda: found.append(asyncio.run(keys.find("one", "RS256"))))
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    assert server.asked.wait(DEADLINE)
    server.answers.set()
    for thread in threads:
        thread.join(DEADLINE)
    assert found == [rsa_key(1).public_key()] * 4
    assert server.requests == 1


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*:DeprecationWarning")  # from Python 3.12
def test_a_forked_process_fetches_for_itself(server: Provider, keys: JWKS) -> None:
    # Forked while a fetch is running: its thread is not in the other process.
    server.answers.clear()
    asking = threading.Thread(target=lambda: asyncio.run(keys.find("one", "RS256")))
    asking.start()
    assert server.asked.wait(DEADLINE)
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)

    def find() -> None:
        sender.send(asyncio.run(keys.find("one", "RS256")) is not None)

    process = context.Process(target=find)
    process.start()
    server.answers.set()
    assert receiver.poll(DEADLINE)
    assert receiver.recv() is True
    process.join(DEADLINE)
    asking.join(DEADLINE)
    process.close()
    receiver.close()
    sender.close()


# Outages


async def test_without_keys_tokens_are_refused_with_503_and_the_next_attempt_is_soon(
    server: Provider, keys: JWKS, clock: FakeClock, caplog: pytest.LogCaptureFixture
) -> None:
    server.status = 500
    for _ in range(3):
        with pytest.raises(KeysUnavailable) as caught:
            await keys.find("one", "RS256")
        assert caught.value.status_code == 503
        assert caught.value.headers == {"Retry-After": "2"}
    assert server.requests == 1
    (line,) = caplog.messages
    assert f"Could not fetch the signing keys from {keys.host} ('status 500')" in line
    assert "keys.json" not in line
    server.status = 200
    clock.advance(RETRY)
    assert await keys.find("one", "RS256") is not None


async def test_keys_of_the_last_fetch_count_for_an_hour(
    server: Provider, keys: JWKS, clock: FakeClock
) -> None:
    await keys.find("one", "RS256")
    server.status = 503
    while clock() < 1000.0 + MAX_AGE:
        assert await keys.find("one", "RS256") is not None
        await fetched()
        clock.advance(INTERVAL / 3)
    clock.advance(INTERVAL)
    with pytest.raises(KeysUnavailable):
        await keys.find("one", "RS256")
    # The attempts of clients with the old key: one in 30 seconds.
    assert server.requests <= 2 + (MAX_AGE - FRESH) / INTERVAL
    server.status = 200
    clock.advance(RETRY)
    assert await keys.find("one", "RS256") is not None


async def test_an_unknown_key_is_not_called_wrong_while_the_provider_is_away(
    server: Provider, keys: JWKS, clock: FakeClock
) -> None:
    await keys.find("one", "RS256")
    server.status = 502
    clock.advance(INTERVAL)
    for _ in range(3):
        with pytest.raises(KeysUnavailable):
            await keys.find("two", "RS256")
        assert await keys.find("one", "RS256") is not None
    assert server.requests == 2


async def test_a_provider_that_does_not_answer_is_waited_for_for_a_limited_time(
    server: Provider, keys: JWKS, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jwks, "TIMEOUT", 0.2)
    server.answers.clear()
    with pytest.raises(KeysUnavailable):
        await keys.find("one", "RS256")
    # Those that come later do not wait for the same fetch.
    clock.advance(1.0)
    with pytest.raises(KeysUnavailable):
        await keys.find("one", "RS256")
    assert server.requests == 1


async def test_a_server_that_is_not_there_is_an_outage(clock: FakeClock) -> None:
    with socket.socket() as sock:
        # Bound, and not listening.
        sock.bind(("127.0.0.1", 0))
        with pytest.raises(KeysUnavailable):
            await JWKS(f"http://127.0.0.1:{sock.getsockname()[1]}/", RS256, clock=clock).find("one", "RS256")


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b"", "the answer is not a JWKS"),
        (b"<html>", "the answer is not a JWKS"),
        (b"[" * 100_000, "the answer is not a JWKS"),
        (b'{"keys": {}}', "the answer is not a JWKS"),
        (b'{"keys": [1, null, {"kty": "RSA"}]}', "none of its 3 keys is for RS256"),
        (b" " * 1_048_577, "the answer has more than 1048576 bytes"),
    ],
)
async def test_an_answer_without_keys_is_an_outage(
    server: Provider, keys: JWKS, body: bytes, reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    server.body = body
    with pytest.raises(KeysUnavailable):
        await keys.find("one", "RS256")
    assert reason in caplog.text


async def test_redirects_are_not_followed(
    server: Provider, keys: JWKS, caplog: pytest.LogCaptureFixture
) -> None:
    with provider() as other:
        other.keys = server.keys
        server.status, server.headers = 302, {"Location": other.url}
        with pytest.raises(KeysUnavailable):
            await keys.find("one", "RS256")
        assert other.requests == 0
    assert "status 302" in caplog.text


# Keys


async def test_a_token_without_a_key_id_fits_if_there_is_one_key(server: Provider, clock: FakeClock) -> None:
    server.keys = [jwk(rsa_key(1), "one"), jwk(ec_key(), "two")]
    keys = JWKS(server.url, ("RS256", "ES256"), clock=clock)
    assert await keys.find(None, "RS256") == rsa_key(1).public_key()
    assert await keys.find(None, "ES256") == ec_key().public_key()
    # The id alone does not choose: the algorithm has to be one of the key.
    assert await keys.find("two", "RS256") is None
    server.keys.append(jwk(rsa_key(2), "three"))
    clock.advance(INTERVAL)
    assert await keys.find("three", "RS256") is not None
    assert await keys.find(None, "RS256") is None


def test_only_public_keys_for_signatures_are_taken() -> None:
    algorithms = ("RS256", "RS512", "ES256", "EdDSA")
    entries: list[Any] = [
        jwk(rsa_key(1), "any RSA"),
        jwk(rsa_key(2), "RS512", alg="RS512", use="sig", key_ops=["verify"]),
        jwk(ec_key(), "EC"),
        jwk(ed_key()),
        # Left out:
        jwk(rsa_key(1), "for encryption", use="enc"),
        jwk(rsa_key(1), "for encryption", key_ops=["encrypt"]),
        jwk(rsa_key(1), "for encryption", alg="RSA-OAEP"),
        jwk(rsa_key(1, 1024), "short"),
        jwk(rsa_key(1), "another algorithm", alg="PS256"),
        jwk(ec_key(1, ec.SECP384R1), "another curve"),
        {**jwk(rsa_key(1)), "kid": 7},
        {"kty": "oct", "k": "c2VjcmV0", "kid": "secret", "alg": "HS256"},
        {**jwk(ec_key()), "kid": "private", "d": "AQAB"},
        {"kty": "RSA", "n": "x", "e": "y", "kid": "broken"},
        {},
        "text",
    ]
    found = parse_keys(json.dumps({"keys": entries}).encode(), algorithms)
    assert [(key.id, key.algorithms) for key in found] == [
        ("any RSA", ("RS256", "RS512")),
        ("RS512", ("RS512",)),
        ("EC", ("ES256",)),
        (None, ("EdDSA",)),
    ]
    many = {"keys": [*[{}] * MAX_KEYS, jwk(rsa_key(1), "too late")]}
    with pytest.raises(ValueError, match="none of its 101 keys is for RS256"):
        parse_keys(json.dumps(many).encode(), RS256)


@given(
    document=st.recursive(
        st.none() | st.integers() | st.text(),
        lambda inner: st.lists(inner) | st.dictionaries(st.sampled_from(["keys", "kty", "n", "kid"]), inner),
    )
)
def test_garbage_is_no_jwks(document: Any) -> None:
    with pytest.raises(ValueError, match=r"not a JWKS|none of its"):
        parse_keys(json.dumps(document).encode(), RS256)


# URLs


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("http://example.com/s3cret", "Expected the URL of a JWKS with https, but got http://example.com:"),
        ("http://localhost.example.com/s3cret", "keys that come without TLS can be replaced"),
        ("http://10.0.0.1/s3cret", "Write https://, and http:// only for localhost."),
        ("ftp://example.com/s3cret", "but got ftp://example.com"),
        ("https:///s3cret", "with a host"),
        ("https://ann:s3cret@example.com/", "without spaces, user and password"),
        ("https://example.com/s3cret key", "without spaces"),
        ("https://example.com/s3cret\x7f", "without spaces"),
        ("https://example.com:99999/s3cret", "one that cannot be read"),
        ("https://[example.com/s3cret", "one that cannot be read"),
    ],
)
def test_other_urls_are_refused_without_being_shown(url: str, message: str) -> None:
    with pytest.raises(ValueError, match="Expected the URL of a JWKS") as caught:
        JWKS(url, RS256)
    assert message in str(caught.value)
    assert "s3cret" not in str(caught.value)


@pytest.mark.parametrize("host", ["localhost:1", "127.0.0.1", "127.9.9.9:8000", "[::1]:8000"])
def test_this_machine_needs_no_tls(host: str) -> None:
    assert JWKS(f"http://{host}/keys", RS256).host == host
