"""The address in the URL of a Redis server, of a cluster, or of sentinels."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, NamedTuple
from urllib.parse import parse_qsl, unquote, urlsplit

from redis.asyncio.connection import (
    AbstractConnection,
    Connection,
    SSLConnection,
    UnixDomainSocketConnection,
)

from hubbub.engines.base import CONNECT_TIMEOUT
from hubbub.exceptions import InvalidURL

#: The parameters after "?" in the URL of a server with TLS.
TLS_PARAMETERS = ("ssl_ca_certs", "ssl_certfile", "ssl_keyfile", "ssl_cert_reqs", "ssl_check_hostname")


class Address(NamedTuple):
    """The contents of a URL.

    Where there are neither sentinels nor nodes, ``options`` have the address of the one server.

    :param driver: the class of redis-py's connections.
    :param where: hosts and ports, for messages. Without the password.
    :param options: the parameters of ``driver``.
    :param sentinels: host and port of each sentinel.
    :param service: the name that the sentinels have for the primary.
    :param nodes: host and port of nodes of a cluster.
    """

    driver: type[AbstractConnection]
    where: str
    options: dict[str, Any]
    sentinels: Sequence[tuple[str, int]] = ()
    service: str = ""
    nodes: Sequence[tuple[str, int]] = ()

    def __str__(self) -> str:
        """Return the server's name, for messages."""
        if self.sentinels:
            return f"Redis behind the sentinels at {self.where}"
        if self.nodes:
            return f"the Redis cluster at {self.where}"
        return f"Redis at {self.where}"


def parse_url(url: str) -> Address:
    """Return the address in ``url``.

    :raises InvalidURL: the URL is of none of the kinds described in :mod:`hubbub.engines.redis`. The message
        repeats nothing of it: a part that looks like a host or a port may be a password.
    """
    try:
        # urlsplit() takes several hosts for one. They are split below.
        parts = urlsplit(url)
        credentials, _, hosts = parts.netloc.rpartition("@")
        parameters = dict(parse_qsl(parts.query, keep_blank_values=True, strict_parsing=bool(parts.query)))
    except ValueError:
        raise InvalidURL("Expected a URL such as 'redis://host:6379/0', but got a malformed one.") from None
    if parts.fragment:
        raise InvalidURL("Expected '#' in a URL to be written as '%23', but got it as it is.")
    user, _, password = credentials.partition(":")
    options: dict[str, Any] = {
        "username": unquote(user) or None,
        "password": unquote(password) or None,
        "socket_connect_timeout": CONNECT_TIMEOUT,
        # Each request has its own deadline, and a listening connection may be silent.
        "socket_timeout": None,
        "protocol": 2,
    }
    path = unquote(parts.path)
    if parts.scheme == "redis+unix":
        if hosts or not path:
            raise InvalidURL(
                "Expected a URL such as 'redis+unix:///run/redis.sock', but got one with a host or without a "
                "path."
            )
        _allow_parameters(parameters, ("db",))
        options |= {"path": path, "db": _db(parameters.get("db", ""))}
        return Address(UnixDomainSocketConnection, path, options)
    if parts.scheme == "redis+sentinel":
        service, _, db = path.removeprefix("/").partition("/")
        if not hosts or not service:
            raise InvalidURL(
                "Expected a URL such as 'redis+sentinel://host1:26379,host2/service/0', but got one without "
                "a host or without a service."
            )
        _allow_parameters(parameters, ())
        sentinels = [_host_and_port(each, 26379) for each in hosts.split(",")]
        return Address(Connection, _listed(sentinels), {**options, "db": _db(db)}, sentinels, service)
    if parts.scheme == "redis+cluster":
        if not hosts or path not in ("", "/", "/0"):
            raise InvalidURL(
                "Expected a URL such as 'redis+cluster://host1:6379,host2', but got one without a host or "
                "with a path."
            )
        _allow_parameters(parameters, ())
        nodes = [_host_and_port(each, 6379) for each in hosts.split(",")]
        return Address(Connection, _listed(nodes), {**options, "db": 0}, nodes=nodes)
    host, port = _host_and_port(hosts, 6379)
    options |= {"host": host, "port": port, "db": _db(path.removeprefix("/"))}
    where = f"{host}:{port}"
    if parts.scheme == "redis":
        _allow_parameters(parameters, ())
        return Address(Connection, where, options)
    _allow_parameters(parameters, TLS_PARAMETERS)
    if "ssl_check_hostname" in parameters:
        check = parameters.pop("ssl_check_hostname").lower() not in ("0", "false", "no")
        options["ssl_check_hostname"] = check
    return Address(SSLConnection, where, options | parameters)


def _listed(servers: Sequence[tuple[str, int]]) -> str:
    return ", ".join(f"{host}:{port}" for host, port in servers)


def _allow_parameters(parameters: dict[str, str], allowed: Sequence[str]) -> None:
    if not parameters.keys() <= set(allowed):
        known = ", ".join(allowed) or "none"
        raise InvalidURL(
            f"Expected only parameters that this kind of URL has after '?' ({known}), but got another one."
        )


def _db(text: str) -> int:
    if not re.fullmatch("[0-9]{0,9}", text):
        raise InvalidURL("Expected the number of a database, such as 0, but got something else.")
    return int(text or "0")


def _host_and_port(text: str, default: int) -> tuple[str, int]:
    match = re.fullmatch(r"(?:\[([0-9A-Fa-f:.%]+)\]|([^:\[\]]*))(?::([0-9]{1,5}))?", text)
    if match is None:
        raise InvalidURL("Expected host:port, such as 'localhost:6379' or '[::1]:6379', but got neither.")
    return match[1] or unquote(match[2] or "") or "localhost", int(match[3] or default)
