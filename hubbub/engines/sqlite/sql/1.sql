-- Version 1 of the tables of a file, which are shared by all namespaces in it. Statements are told apart by their
-- semicolons alone. What a version adds or changes is in the file with its number, and none is edited later.

-- One row per channel that has a history. top is the offset of its last publication, used when that was.
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

-- What was published, in the order of ids: histories, and what is on its way to other processes. AUTOINCREMENT
-- never gives out an id twice, also after rows are deleted.
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

-- Idempotency keys, and the position of what was published with each.
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
