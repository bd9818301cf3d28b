-- Version 2: presence.

-- Leases of nodes, and when each lapses unless it is renewed.
CREATE TABLE hubbub_leases (
    namespace TEXT NOT NULL,
    lease TEXT NOT NULL,
    lapses REAL NOT NULL,
    PRIMARY KEY (namespace, lease)
) WITHOUT ROWID;

-- Presence entries, each under a lease.
CREATE TABLE hubbub_presence (
    namespace TEXT NOT NULL,
    channel TEXT NOT NULL,
    connection TEXT NOT NULL,
    data BLOB NOT NULL,
    lease TEXT NOT NULL,
    PRIMARY KEY (namespace, channel, connection)
) WITHOUT ROWID;
CREATE INDEX hubbub_presence_lease ON hubbub_presence (namespace, lease)
