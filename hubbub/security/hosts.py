"""Hosts: the names that a server answers to.

A page can have its own name resolve to the address of a server in its visitor's network (DNS rebinding). For
the browser, page and server are then the same site, and the origin check passes. But the ``Host`` header has
the page's name.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network

_NAME = re.compile(r"[a-z0-9_-]{1,63}(\.[a-z0-9_-]{1,63})*")
_AUTHORITY = re.compile(r"(\[(?P<literal>[^\]]*)\]|(?P<host>[^:]*))(:[0-9]*)?")


@dataclass(frozen=True, slots=True)
class Hosts:
    """Allowed host names, and allowed networks for requests that name an address.

    :param names: in lower case, without a dot at the end.
    :param networks: single addresses are networks of one address.
    """

    names: frozenset[str]
    networks: tuple[IPv4Network | IPv6Network, ...]

    def include(self, host: str | None) -> bool:
        """Whether a request with this ``Host`` header may be answered. Its port does not count."""
        match = _AUTHORITY.fullmatch(host.strip()) if host is not None else None
        if match is None:
            return False
        name = (match["literal"] or match["host"] or "").lower().removesuffix(".")
        try:
            address = ip_address(name)
        except ValueError:
            return name in self.names
        return any(address in network for network in self.networks)


def parse_hosts(hosts: Iterable[str] | None) -> Hosts | None:
    """Check and parse the parameter ``hosts``.

    :raises ValueError: an entry is neither a host name nor an address, so that no request could match it; or
        there is no entry.
    """
    if hosts is None:
        return None
    if isinstance(hosts, str) or not isinstance(hosts, Iterable):
        raise ValueError(f"Expected hosts as a list of host names, but got {hosts!r}.")
    names: set[str] = set()
    networks: list[IPv4Network | IPv6Network] = []
    for host in hosts:
        try:
            networks.append(ip_network(_bare(host), strict=False))
        except ValueError:
            names.add(_parse_name(host))
    if not names and not networks:
        raise ValueError(
            "Expected hosts to name at least one host, but got an empty list. Use None to check nothing."
        )
    return Hosts(frozenset(names), tuple(networks))


def _bare(host: object) -> str:
    """Return ``host`` without the brackets that an IPv6 address has in a URL."""
    text = str(host).strip()
    return text[1:-1] if text.startswith("[") and text.endswith("]") else text


def _parse_name(host: object) -> str:
    if isinstance(host, str):
        name = host.strip().lower().removesuffix(".")
        if _NAME.fullmatch(name):
            return name
        # A URL, an origin, or a name with its port: the error message shows the name in it.
        rest = re.split(r"[/?#]", name.partition("://")[2] or name)[0].rpartition("@")[2]
        inner = _AUTHORITY.fullmatch(rest)
        meant = (inner["literal"] or inner["host"] or "").removesuffix(".") if inner else ""
        if _NAME.fullmatch(meant) or (inner and inner["literal"]):
            raise ValueError(
                f"Expected a host name without scheme, port and path, but got {host!r}: write {meant!r}."
            )
    raise ValueError(
        f"Expected a host name such as 'example.com', an address or a network such as '10.0.0.0/8', but got "
        f"{host!r}. There are no wildcards; names that are not ASCII are written as 'xn--…'."
    )
