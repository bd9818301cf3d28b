-- Version 1 of the tables of a file, which all its namespaces share. Statements are separated at semicolons, wherever
-- they are. The additions and changes of a version are in the file with its number, and no statement is edited later.

-- One row per channel with history. top is the offset of its last publication, used the time of its last use.
CREATE TABLE hubbub_streams (
    namespace TEXT NOT NULL,
    channel TEXT NOT NULL,
    epoch TEXT NOT NULL,
    top INTEGER NOT NULL,
    size INTEGER NOT NULL,
    ttl REAL NOT NULL,
    used REAL NOT NULL,
    PRIMARY KEY (namespace, channel)
) WITHOUT ROWID;

-- Publications in the order of ids: histories, and publications that other processes have yet to read. AUTOINCREMENT
-- never gives out an id twice, even after rows were deleted.
CREATE TABLE hubbub_publications (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    namespace TEXT NOT NULL,
    channel TEXT NOT NULL,
    offset INTEGER NOT NULL,
    time REAL NOT NULL,
    expires REAL NOT NULL,
    packed BLOB NOT NULL
);
CREATE UNIQUE INDEX hubbub_history ON hubbub_publications (namespace, channel, offset) WHERE offset > 0;
CREATE INDEX hubbub_publications_expires ON hubbub_publications (expires);

-- Idempotency keys, and the position of the publication with each.
CREATE TABLE hubbub_keys (
    namespace TEXT NOT NULL,
    channel TEXT NOT NULL,
    key TEXT NOT NULL,
    offset INTEGER NOT NULL,
    epoch TEXT NOT NULL,
    expires REAL NOT NULL,
    PRIMARY KEY (namespace, channel, key)
) WITHOUT ROWID;
CREATE INDEX hubbub_keys_expires ON hubbub_keys (expires)
