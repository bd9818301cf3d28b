"""Advice for the error messages of engines and their servers."""

from __future__ import annotations

import re

#: A pattern of error messages, and the advice for them. The first pattern that matches counts.
_ADVICE: tuple[tuple[str, str], ...] = (
    (
        # The last alternative is how Redis 6 and 7 refuse a command inside a script.
        "NOPERM|[Nn]o permissions|can't run this command",
        (
            "Grant the user the rights that Hubbub needs: ACL SETUSER USER ~NAMESPACE:* resetchannels "
            "&NAMESPACE:* +@connection +@pubsub +@scripting +@hash +@stream +@string +@sortedset +exists "
            "+del +pexpire +pttl +time +role +info, in a cluster also +cluster|slots"
        ),
    ),
    (
        "WRONGPASS|NOAUTH|AUTH|password|authentication|no pg_hba.conf entry|role .* does not exist",
        (
            "Check the user and the password in the URL. Special characters in them must be quoted, as "
            "urllib.parse.quote(…, safe='') does."
        ),
    ),
    (
        "may not create the schema|LISTEN does not work|older than|is of version|asyncpg does not understand",
        "",
    ),
    (
        "too many connections|remaining connection slots|max number of clients",
        "Find out which clients hold the connections, or allow more: max_connections, maxclients.",
    ),
    (
        "permission denied",
        (
            "As the owner of the schema, give the user rights on it: GRANT USAGE ON SCHEMA …, GRANT ALL ON "
            "ALL TABLES IN SCHEMA …, GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA …"
        ),
    ),
    ("database .* does not exist", "Create it with CREATE DATABASE, or check the name in the URL."),
    ("replica", "Use the URL of the primary, or of sentinels: redis+sentinel://host:26379/service"),
    ("read-?only", "Allow the user that the app runs as to write to the file and to its directory."),
    ("unable to open", "Create the directory, and allow the user that the app runs as to write to it."),
    (
        "directory does not exist",
        "Create the directory, or check the path: an absolute path has four slashes before it.",
    ),
    ("not a database|schema version", "Use a file of its own for Hubbub."),
    ("[Cc]ertificate|SSL|TLS", "Check the server's certificate, and whether the server uses TLS at all."),
    (
        "Name or service|getaddrinfo|nodename",
        "Check the host in the URL: its name has no address in the DNS.",
    ),
    (
        "refused|Connect call failed|No such file|unreachable",
        "Start the server, or check host and port in the URL. In a container, localhost is the container.",
    ),
    (
        "no answer|timed out|in time",
        "Check whether a firewall drops the connection, and whether the server is overloaded.",
    ),
)

_DEFAULT = "Check the server's log."


def advise(message: str) -> str:
    """Return advice for ``message``, or an empty string if the message contains it already."""
    for pattern, advice in _ADVICE:
        if re.search(pattern, message):
            return advice
    return _DEFAULT
