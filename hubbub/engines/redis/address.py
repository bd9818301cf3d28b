"""What the URL of a Redis server says."""

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

from hubbub.engines.redis.connection import CONNECT_TIMEOUT
from hubbub.exceptions import InvalidURL

#: What may stand behind the "?" of a URL.
TLS_OPTIONS = ("ssl_ca_certs", "ssl_certfile", "ssl_keyfile", "ssl_cert_reqs", "ssl_check_hostname")


class Target(NamedTuple):
    """What a URL names.

    :param where: for messages; without the password.
    :param sentinels: who is to be asked where ``service`` is.
    :param nodes: who is to be asked what the cluster looks like. If there are neither sentinels nor nodes,
        ``options`` say where the server is.
    :param options: for the connection.
    """

    connection: type[AbstractConnection]
    where: str
    options: dict[str, Any]
    sentinels: Sequence[tuple[str, int]] = ()
    service: str = ""
    nodes: Sequence[tuple[str, int]] = ()


def parse_url(url: str) -> Target:
    """What ``url`` names.

    :raises InvalidURL: it is none of those described in :mod:`hubbub.engines.redis`. The message repeats
        nothing of it, for what was mistaken for a host or a port may be a password.
    """
    try:
        # What urlsplit() makes of several hosts and ports is undone below.
        parts = urlsplit(url)
        credentials, _, hosts = parts.netloc.rpartition("@")
        options = dict(parse_qsl(parts.query, keep_blank_values=True, strict_parsing=bool(parts.query)))
    except ValueError:
        raise InvalidURL("Expected a URL such as 'redis://host:6379/0', but got a malformed one.") from None
    if parts.fragment:
        raise InvalidURL("Expected '#' in a URL to be written '%23', but got it as it is.")
    user, _, password = credentials.partition(":")
    common: dict[str, Any] = {
        "username": unquote(user) or None,
        "password": unquote(password) or None,
        "socket_connect_timeout": CONNECT_TIMEOUT,
        # There are deadlines for answers here, and silence between them is no reason to break off.
        "socket_timeout": None,
        "protocol": 2,
    }
    path = unquote(parts.path)
    if parts.scheme == "redis+unix":
        if hosts or not path:
            raise InvalidURL("Expected a URL such as 'redis+unix:///run/redis.sock', but got another kind.")
        _allow_options(options, ("db",))
        return Target(
            UnixDomainSocketConnection, path, {**common, "path": path, "db": _db(options.get("db", ""))}
        )
    if parts.scheme == "redis+sentinel":
        service, _, db = path.removeprefix("/").partition("/")
        if not hosts or not service:
            raise InvalidURL(
                "Expected a URL such as 'redis+sentinel://host1:26379,host2/service/0', but got none or no "
                "service."
            )
        _allow_options(options, ())
        sentinels = [_host_and_port(each, 26379) for each in hosts.split(",")]
        where = "the sentinels at " + ", ".join(f"{host}:{port}" for host, port in sentinels)
        return Target(Connection, where, {**common, "db": _db(db)}, sentinels, service)
    if parts.scheme == "redis+cluster":
        if not hosts or path not in ("", "/", "/0"):
            raise InvalidURL(
                "Expected a URL such as 'redis+cluster://host1:6379,host2', but got another kind."
            )
        _allow_options(options, ())
        nodes = [_host_and_port(each, 6379) for each in hosts.split(",")]
        where = "the cluster at " + ", ".join(f"{host}:{port}" for host, port in nodes)
        return Target(Connection, where, {**common, "db": 0}, nodes=nodes)
    host, port = _host_and_port(hosts, 6379)
    common |= {"host": host, "port": port, "db": _db(path.removeprefix("/"))}
    where = f"{host}:{port}"
    if parts.scheme == "redis":
        _allow_options(options, ())
        return Target(Connection, where, common)
    _allow_options(options, TLS_OPTIONS)
    if "ssl_check_hostname" in options:
        common["ssl_check_hostname"] = options.pop("ssl_check_hostname").lower() not in ("0", "false", "no")
    return Target(SSLConnection, where, common | options)


def _allow_options(options: dict[str, str], allowed: Sequence[str]) -> None:
    if not options.keys() <= set(allowed):
        known = ", ".join(allowed) or "none"
        raise InvalidURL(f"Expected after '?' only what this kind of URL has ({known}), but got more.")


def _db(text: str) -> int:
    if not re.fullmatch("[0-9]{0,9}", text):
        raise InvalidURL("Expected the number of a database, such as 0, but got something else.")
    return int(text or "0")


def _host_and_port(text: str, default: int) -> tuple[str, int]:
    match = re.fullmatch(r"(?:\[([0-9A-Fa-f:.%]+)\]|([^:\[\]]*))(?::([0-9]{1,5}))?", text)
    if match is None:
        raise InvalidURL("Expected host:port, such as 'localhost:6379' or '[::1]:6379', but got neither.")
    return match[1] or unquote(match[2] or "") or "localhost", int(match[3] or default)
