"""The address of the database, and the parameters of its connections: the parts of the URL."""

from __future__ import annotations

import re
from difflib import get_close_matches
from typing import Any
from urllib.parse import parse_qsl, unquote, urlencode, urlsplit, urlunsplit

from hubbub.engines.base import ANSWER_TIMEOUT, CONNECT_TIMEOUT
from hubbub.exceptions import EngineUnavailable, InvalidURL

#: Parameters of a URL that are ours, and those of libpq that asyncpg knows. asyncpg would send any other to
#: the server as a setting.
OURS = ("listen", "notify", "pool_size", "statement_cache_size")
LIBPQ = (
    *("application_name", "database", "dbname", "gsslib", "host", "krbsrvname", "options", "passfile"),
    *("password", "port", "service", "sslcert", "sslcrl", "sslkey", "sslmode"),
    *("sslnegotiation", "sslpassword", "sslrootcert", "ssl_max_protocol_version"),
    *("ssl_min_protocol_version", "target_session_attrs", "user"),
)

#: Between the user and the path of a URL: hosts, each with a port or without, or nothing.
_HOSTS = re.compile(r"(([^:,]+|\[[^\]]*\])?(:[0-9]+)?(,|$))*")


class Address:
    """The parts of the URL; ``str()`` of it has no password.

    :param url: see :class:`~hubbub.engines.postgres.PostgresEngine`.
    :raises InvalidURL: it cannot be understood, or has unknown parameters.
    """

    def __init__(self, url: str) -> None:
        try:
            parts = urlsplit(url)
        except ValueError:
            parts = None
        hosts = parts.netloc.rpartition("@")[2] if parts is not None else ""
        # A password with '/', '?' or '#' in it would be taken for another part, and appear in messages.
        if (
            parts is None
            or _HOSTS.fullmatch(hosts) is None
            or ("@" not in parts.netloc and "@" in f"{parts.path}{parts.query}{parts.fragment}")
        ):
            # The errors of urlsplit() repeat the URL.
            raise InvalidURL(
                "Expected a URL such as 'postgresql://user:password@host:5432/database', in which special "
                "characters of user and password are written as urllib.parse.quote(…, safe='') does."
            )
        options = parse_qsl(parts.query, keep_blank_values=True)
        for name, _ in options:
            if name not in (*OURS, *LIBPQ):
                raise _unknown(name)
        ours = dict(each for each in options if each[0] in OURS)
        rest = [each for each in options if each[0] not in OURS]
        #: The URL without our own parameters.
        self.dsn = urlunsplit(parts._replace(query=urlencode(rest)))
        self.pool_size = _number(ours, "pool_size", 10, 1)
        #: Options of every connection.
        self.options: dict[str, Any] = {
            "timeout": CONNECT_TIMEOUT,
            "command_timeout": ANSWER_TIMEOUT,
            "statement_cache_size": _number(ours, "statement_cache_size", 100, 0),
        }
        #: Whether publications are announced with NOTIFY, which nodes receive with LISTEN.
        self.notify = _switch(ours, "notify")
        #: Whether a connection keeps prepared statements.
        self.keeps_statements = self.options["statement_cache_size"] > 0
        #: Options of the connection that listens, which must not be a pooler's.
        self.listen: dict[str, Any] = {}
        if "listen" in ours:
            if not self.notify:
                raise InvalidURL(
                    "Expected only one of the parameters 'listen' and 'notify=off' in the URL, but got both. "
                    "Without notifications there is nothing to listen to: leave out 'listen'."
                )
            host, _, port = ours["listen"].rpartition(":")
            if not host or not port.isdecimal():
                raise InvalidURL(
                    "Expected the URL's parameter 'listen' to be 'host:port', but got something else."
                )
            self.listen = {"host": host, "port": int(port)}
        host = hosts or dict(rest).get("host", "localhost")
        self._name = f"{host if ':' in host else f'{host}:5432'}{unquote(parts.path)}"

    def __str__(self) -> str:
        return self._name

    def unavailable(self, reason: str) -> EngineUnavailable:
        """Return the error to raise when the database cannot be used.

        :param reason: a sentence for people. Its period may be missing, as in messages of the server.
        """
        end = "" if reason.endswith((".", "?")) else "."
        return EngineUnavailable(f"PostgreSQL at {self} cannot be used: {reason}{end}")


def _number(options: dict[str, str], name: str, default: int, least: int) -> int:
    value = options.get(name, str(default))
    if not value.isdecimal() or int(value) < least:
        raise InvalidURL(
            f"Expected the URL's parameter {name!r} to be a number from {least}, but got {value!r}."
        )
    return int(value)


def _switch(options: dict[str, str], name: str) -> bool:
    value = options.get(name, "on")
    if value not in ("on", "off"):
        raise InvalidURL(
            f"Expected the URL's parameter {name!r} to be 'on' or 'off', but got something else."
        )
    return value == "on"


def _unknown(name: str) -> InvalidURL:
    # The name itself is not repeated: it may be a part of a password with a '?' or '&' in it.
    similar = get_close_matches(name, (*OURS, *LIBPQ), 1)
    hint = f" Is {similar[0]!r} meant?" if similar else ""
    return InvalidURL(
        f"Expected {', '.join(OURS)} or a parameter of libpq that asyncpg knows in the URL, but got another "
        f"one.{hint} Settings of the server can be given as 'options=-c%20name=value'."
    )
