"""JWKS: the public keys that a provider of tokens publishes at a URL (:rfc:`7517#section-5`).

Keys are fetched when the first token needs them, in a thread of their own, and kept. A key that the set does
not have makes it be fetched again, but rarely: any client can send tokens that name unknown keys. Old keys
are fetched again while they are still used, so that no client waits.

One fetch at a time, of limited size and duration; if the server fails, the keys of the last fetch count for a
while, and then tokens are refused with 503. A token must not be called wrong because its key is not at hand.
"""

from __future__ import annotations

import asyncio
import json
import logging
import threading
import time
import urllib.request
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass
from http.client import HTTPException as HTTPClientError
from ipaddress import ip_address
from typing import Any
from urllib.error import HTTPError
from urllib.parse import SplitResult, urlsplit

import jwt
from fastapi import HTTPException

from hubbub.core.throttle import Throttle
from hubbub.security.keys import PublicKey, fits

logger = logging.getLogger(__name__)

#: Seconds that a fetch may take, and that a client waits for it.
TIMEOUT = 5.0
#: Seconds between two fetches that unknown keys, or old ones, cause.
INTERVAL = 30.0
#: Seconds until the next attempt, if there are no keys and a fetch has failed.
RETRY = 2.0
#: Seconds after which keys are fetched again, and after which they do not count any more.
FRESH = 600.0
MAX_AGE = 3600.0
#: Bytes of a key set, and keys in it.
MAX_SIZE = 1_048_576
MAX_KEYS = 100


class KeysUnavailable(HTTPException):
    """The keys are not there, so that no token can be checked: 503."""

    def __init__(self) -> None:
        super().__init__(
            503, "the signing keys cannot be fetched at the moment", headers={"Retry-After": f"{RETRY:.0f}"}
        )


@dataclass(frozen=True, slots=True)
class SigningKey:
    """A public key of a key set, with the algorithms that may be used with it."""

    id: str | None
    key: PublicKey
    algorithms: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Keys:
    keys: tuple[SigningKey, ...]
    fetched_at: float


class JWKS:
    """The signing keys at a URL.

    :param url: with ``https``; with ``http`` on this machine only.
    :param algorithms: keys for other algorithms are left out.
    :param clock: returns seconds that never go back.
    :raises ValueError: ``url`` is another URL.
    """

    def __init__(
        self, url: str, algorithms: tuple[str, ...], *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        parts = _check_url(url)
        #: The host, for messages: paths and queries may contain secrets.
        self.host = parts.netloc
        self._url = url
        self._algorithms = algorithms
        self._clock = clock
        self._warnings = Throttle(clock=clock)
        handlers: list[urllib.request.BaseHandler] = [_NoRedirects()]
        if parts.scheme == "http":
            # A proxy reaches its own loopback, not this one.
            handlers.append(urllib.request.ProxyHandler({}))
        self._opener = urllib.request.build_opener(*handlers)
        self._keys: _Keys | None = None
        # Fetching. Several event loops, each in its thread, may share this object.
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._fetch: Future[None] = Future()
        self._attempted_at = float("-inf")
        self._has_failed = False

    async def find(self, key_id: str | None, algorithm: str) -> PublicKey | None:
        """Return the key with this id for ``algorithm``, or ``None`` if the provider has no such key.

        :param key_id: the header ``kid`` of a token. Without it, the only key for ``algorithm`` counts.
        :raises KeysUnavailable: the keys cannot be fetched, so that the answer is not known.
        """
        keys = self._keys
        now = self._clock()
        if keys is None or now - keys.fetched_at > MAX_AGE:
            keys = await self._refresh(RETRY)
        elif now - keys.fetched_at > FRESH and now - self._attempted_at >= INTERVAL:
            self._start()
        found = _match(keys, key_id, algorithm)
        if found is None and self._clock() - keys.fetched_at >= INTERVAL:
            found = _match(await self._refresh(INTERVAL), key_id, algorithm)
        return found

    # Internal

    async def _refresh(self, interval: float) -> _Keys:
        """Return keys that have just been fetched.

        :param interval: seconds since the last attempt, before which there is no other after a failure.
        """
        before = self._keys
        fetch = self._start(interval)
        # From its beginning: clients that come later do not wait for a fetch that hangs, and do not pile up.
        patience = max(0.0, self._attempted_at + TIMEOUT - self._clock())
        if patience and not fetch.done():
            with suppress(TimeoutError):
                async with asyncio.timeout(patience):
                    await asyncio.wrap_future(fetch)
        keys = self._keys
        if keys is None or keys is before:
            raise KeysUnavailable
        return keys

    def _start(self, interval: float = 0.0) -> Future[None]:
        """Return the fetch that is running, or a new one."""
        with self._lock:
            # A process that was forked has the object of the thread, and not the thread.
            is_running = self._thread is not None and self._thread.is_alive() and not self._fetch.done()
            is_too_early = self._has_failed and self._clock() - self._attempted_at < interval
            if not is_running and not is_too_early:
                self._attempted_at = self._clock()
                self._fetch = Future()
                # Waiting for it can be cancelled, and the fetch cannot.
                self._fetch.set_running_or_notify_cancel()
                # A daemon: a server that answers slowly must not keep this process from ending.
                self._thread = threading.Thread(
                    target=self._run, args=(self._fetch,), name="hubbub-jwks", daemon=True
                )
                self._thread.start()
            return self._fetch

    def _run(self, fetch: Future[None]) -> None:
        """Fetch the keys; runs in a thread."""
        try:
            keys = parse_keys(_download(self._opener, self._url), self._algorithms)
        except Exception as exc:
            self._has_failed = True
            if (more := self._warnings.admit()) is not None:
                # The text may come from the server: cut, and escaped by %r.
                logger.warning(
                    "Could not fetch the signing keys from %s (%.200r); tokens are checked with the keys of "
                    "the last fetch for %.0f minutes, and without keys refused with 503.%s",
                    self.host,
                    str(exc) or type(exc).__name__,
                    MAX_AGE / 60,
                    more,
                )
        else:
            self._has_failed = False
            self._keys = _Keys(keys, self._clock())
        finally:
            fetch.set_result(None)


def parse_keys(document: bytes, algorithms: tuple[str, ...]) -> tuple[SigningKey, ...]:
    """Return the keys of a JWKS that verify one of ``algorithms``. Other keys in it are left out.

    :raises ValueError: it is not a JWKS, or has no such key.
    """
    try:
        entries = json.loads(document)["keys"]
    except (ValueError, TypeError, LookupError, RecursionError):
        entries = None
    if not isinstance(entries, list):
        raise ValueError("the answer is not a JWKS")
    parsed = [_parse_key(entry, algorithms) for entry in entries[:MAX_KEYS] if isinstance(entry, dict)]
    keys = tuple(key for key in parsed if key is not None)
    if not keys:
        raise ValueError(f"none of its {len(entries)} keys is for {' or '.join(algorithms)}")
    return keys


def _parse_key(entry: dict[str, Any], algorithms: tuple[str, ...]) -> SigningKey | None:
    key_id, algorithm = entry.get("kid"), entry.get("alg")
    operations = entry.get("key_ops")
    if not isinstance(key_id, str | None) or entry.get("use") not in (None, "sig"):
        return None
    if isinstance(operations, list) and "verify" not in operations:
        return None
    try:
        key = jwt.PyJWK(entry).key
    except Exception:
        # Of a kind that is not known here, or broken.
        return None
    # A secret, or a private key, that is published is not one to trust.
    if not isinstance(key, PublicKey):
        return None
    usable = tuple(each for each in algorithms if algorithm in (None, each) and fits(key, each))
    return SigningKey(key_id, key, usable) if usable else None


def _match(keys: _Keys, key_id: str | None, algorithm: str) -> PublicKey | None:
    found = [each.key for each in keys.keys if algorithm in each.algorithms and key_id in (None, each.id)]
    # A token that names no key fits only if there is no choice.
    return found[0] if len(found) == 1 or (found and key_id is not None) else None


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """Refuses redirects: they could lead to a host without TLS."""

    def redirect_request(self, *args: Any) -> None:
        return None


def _download(opener: urllib.request.OpenerDirector, url: str) -> bytes:
    request = urllib.request.Request(url, headers={"Accept": "application/json", "User-Agent": "hubbub"})
    end = time.monotonic() + TIMEOUT
    data = b""
    try:
        # The timeout is that of each read.
        with opener.open(request, timeout=TIMEOUT) as response:
            while chunk := response.read1(65_536):
                data += chunk
                if len(data) > MAX_SIZE:
                    raise ValueError(f"the answer has more than {MAX_SIZE} bytes")
                if time.monotonic() > end:
                    raise ValueError(f"the answer took more than {TIMEOUT:.0f} s")
    except HTTPError as exc:
        exc.close()
        raise ValueError(f"status {exc.code}") from None
    except HTTPClientError as exc:
        raise ValueError(f"no HTTP: {type(exc).__name__}") from None
    return data


def _check_url(url: str) -> SplitResult:
    advice = "Write https://, and http:// only for localhost."
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
    except ValueError:
        raise ValueError(f"Expected the URL of a JWKS, but got one that cannot be read. {advice}") from None
    if not host or not (url.isascii() and url.isprintable()) or " " in url or "@" in parts.netloc:
        raise ValueError(
            "Expected the URL of a JWKS with a host, without spaces, user and password, but got another one. "
            f"{advice}"
        )
    if parts.scheme != "https" and not (parts.scheme == "http" and _is_loopback(host)):
        raise ValueError(
            f"Expected the URL of a JWKS with https, but got {parts.scheme}://{host}: keys that come without "
            f"TLS can be replaced on their way. {advice}"
        )
    return parts


def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
