-- Version 2: presence.

-- What nodes enter somebody under, and when that lapses unless it is renewed.
CREATE TABLE hubbub_leases (
    namespace TEXT NOT NULL,
    lease TEXT NOT NULL,
    lapses REAL NOT NULL,
    PRIMARY KEY (namespace, lease)
) WITHOUT ROWID;

-- Who is in a channel, and under which lease.
CREATE TABLE hubbub_presence (
    namespace TEXT NOT NULL,
    channel TEXT NOT NULL,
    connection TEXT NOT NULL,
    data BLOB NOT NULL,
    lease TEXT NOT NULL,
    PRIMARY KEY (namespace, channel, connection)
) WITHOUT ROWID;
CREATE INDEX hubbub_presence_lease ON hubbub_presence (namespace, lease)
