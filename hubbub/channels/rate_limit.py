"""RateLimit: a dependency that limits how often each client may call a handler or a route."""

# FastAPI reads the annotations of __call__, some versions only if they are no strings: there is no
# "from __future__ import annotations" here.

import math
import re
import time
from collections import OrderedDict
from collections.abc import Callable
from ipaddress import IPv6Address, ip_address

from fastapi import HTTPException
from starlette.requests import HTTPConnection

from hubbub.channels.current import CALL, Call
from hubbub.connection.rate import TokenBucket
from hubbub.types import check_count

#: Clients whose calls one limit remembers; beyond it, the one that has not called for the longest time is
#: forgotten. More than the connections of a process, and some 25 MB.
MAX_CLIENTS = 100_000

#: Characters of an address that count. A proxy passes it on in a header, in which it may be any text.
_LONGEST_ADDRESS = 64

_SECONDS = {"second": 1, "minute": 60, "hour": 3600}
_RATE = re.compile(rf"([1-9][0-9]{{0,8}})/({'|'.join(_SECONDS)})")

# Clients that are removed with each call, once their limit does not hold them back any more. Two for one that
# may be added, so that the number of clients goes down again.
_SWEEP = 2


class RateLimit:
    """A limit on the calls of one client, for ``Depends``.

    ::

        @room.on_publish
        async def say(message: Say, limit: Annotated[None, Depends(RateLimit("10/second"))]) -> Said:
            return Said(text=message.text)

        @app.post("/login", dependencies=[Depends(RateLimit("5/minute"))])
        async def login(form: Login) -> Token: ...

    Calls are counted by user. Those of a client without a user are counted by its connection, and those of a
    request without either by the client's address; of an IPv6 address, the first 64 bits count. Behind a
    proxy the server has to be told to trust the proxy's headers, or all clients have one address. Each
    process counts by itself, and so does each ``RateLimit``; use one object in several places to count
    together.

    A client that has not called for a while may make ``burst`` calls at once; then one more each time that
    the rate allows it. Beyond that, ``HTTPException(429)`` is raised, with ``Retry-After``: an error message
    with code 111 on an open connection, the status anywhere else.

    :param rate: a number of calls per ``second``, ``minute`` or ``hour``, such as ``"10/second"``.
    :param burst: calls that may be made at once; by default the number in ``rate``.
    :param clock: returns seconds that never go back.
    :raises TypeError: a parameter has the wrong type.
    :raises ValueError: ``rate`` is not such a text, or ``burst`` is out of range.
    """

    def __init__(
        self, rate: str, *, burst: int | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        if not isinstance(rate, str):
            raise TypeError(f"Expected a rate as str, such as '10/second', but got {rate!r}.")
        match = _RATE.fullmatch(rate)
        if match is None:
            raise ValueError(
                "Expected a rate such as '10/second', '5/minute' or '100/hour', with a number from 1 to "
                f"999,999,999, but got {rate!r}."
            )
        count = int(match[1])
        burst = count if burst is None else burst
        check_count("burst", burst, least=1, most=999_999_999)
        self._text = f"RateLimit({rate!r}, burst={burst})"
        self._rate = count / _SECONDS[match[2]]
        self._burst = burst
        self._clock = clock
        # By client, the one that has called last at the end. A client that is not in it has a full bucket.
        self._buckets: OrderedDict[tuple[str, str], TokenBucket] = OrderedDict()

    def __repr__(self) -> str:
        return self._text

    # No __len__: FastAPI takes a dependency that is false for none at all.
    @property
    def clients(self) -> int:
        """The number of clients that are remembered."""
        return len(self._buckets)

    async def __call__(self, http: HTTPConnection) -> None:
        """Count one call.

        :raises HTTPException: the client has made too many calls (429).
        """
        if seconds := self._bucket(_client(http)).take():
            raise HTTPException(
                429,
                "Too many requests: this client has to wait.",
                headers={"Retry-After": str(math.ceil(seconds))},
            )

    def _bucket(self, client: tuple[str, str]) -> TokenBucket:
        bucket = self._buckets.get(client)
        if bucket is None:
            bucket = self._buckets[client] = TokenBucket(self._rate, self._burst, self._clock)
        self._buckets.move_to_end(client)
        for _ in range(_SWEEP):
            oldest, others = next(iter(self._buckets.items()))
            if others is bucket or not (others.is_full or len(self._buckets) > MAX_CLIENTS):
                break
            del self._buckets[oldest]
        return bucket


def _client(http: HTTPConnection) -> tuple[str, str]:
    """Return the kind of the client's name, and the name."""
    # Of a handler of Hubbub; other routes have none.
    call = http.scope.get(CALL)
    if isinstance(call, Call):
        if call.identity.user is not None:
            return "user", call.identity.user
        if call.connection is not None:
            return "connection", call.connection.id
    return "address", _network(http.client.host if http.client else "")


def _network(host: str) -> str:
    """Return ``host``; of an IPv6 address the network, in which one client may have any number of them."""
    try:
        address = ip_address(host.partition("%")[0])
    except ValueError:
        return host[:_LONGEST_ADDRESS]
    if isinstance(address, IPv6Address):
        if address.ipv4_mapped is not None:
            return str(address.ipv4_mapped)
        return str(IPv6Address(int(address) >> 64 << 64))
    return str(address)
