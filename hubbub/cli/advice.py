"""What to do about what engines and their servers say when they cannot be used."""

from __future__ import annotations

import re

#: What is looked for in a message, and what is to be done then; the first that is found counts.
_ADVICE: tuple[tuple[str, str], ...] = (
    (
        # The last is what Redis 6 and 7 say of a script.
        "NOPERM|[Nn]o permissions|can't run this command",
        (
            "Allow the user what Hubbub needs: ACL SETUSER USER ~NAMESPACE:* resetchannels &NAMESPACE:* "
            "+@connection +@pubsub +@scripting +@hash +@stream +@string +@sortedset +exists +del +pexpire "
            "+pttl +time +role +info, in a cluster also +cluster|slots"
        ),
    ),
    (
        "WRONGPASS|NOAUTH|AUTH|password|authentication|no pg_hba.conf entry|role .* does not exist",
        (
            "Look at user and password in the URL. Special characters in them are written as "
            "urllib.parse.quote(…, safe='') does."
        ),
    ),
    ("may not create the schema|LISTEN does not work|older than|is of version|asyncpg does not understand", ""),
    (
        "too many connections|remaining connection slots|max number of clients",
        "Look who has so many connections, or allow more: max_connections, maxclients.",
    ),
    (
        "permission denied",
        (
            "Give the user rights on the schema, as its owner: GRANT USAGE ON SCHEMA …, GRANT ALL ON ALL "
            "TABLES IN SCHEMA …, GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA …"
        ),
    ),
    ("database .* does not exist", "Make it with CREATE DATABASE, or look at the name in the URL."),
    ("replica", "Give the URL of the primary, or of sentinels: redis+sentinel://host:26379/service"),
    ("read-?only", "Let the user that the app runs as write to the file and to its directory."),
    ("unable to open", "Let the user that the app runs as write to the directory, which must exist."),
    (
        "directory does not exist",
        "Make the directory, or look at the path: four slashes before an absolute one.",
    ),
    ("not a database|schema version", "Give Hubbub a file of its own."),
    ("[Cc]ertificate|SSL|TLS", "Look at the server's certificate, and at whether it speaks TLS at all."),
    ("Name or service|getaddrinfo|nodename", "Look at the host in the URL: nobody knows its address."),
    (
        "refused|Connect call failed|No such file|unreachable",
        "Start the server, or look at host and port in the URL. In a container, localhost is the container.",
    ),
    ("no answer|timed out|in time", "Look whether a firewall is in between, and whether the server is busy."),
)

_ELSE = "Look at the server's log."


def advise(message: str) -> str:
    """What to do about ``message``, or '' if it says that itself."""
    for pattern, advice in _ADVICE:
        if re.search(pattern, message):
            return advice
    return _ELSE
