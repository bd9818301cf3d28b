-- Version 2: presence, and the versions that can use a schema.

-- The lowest version that can use this schema. A step that only adds something does not change it: then workers of
-- earlier versions can still connect.
ALTER TABLE {schema}.state ADD COLUMN usable_from integer NOT NULL DEFAULT 2;

-- Leases of nodes, and when each lapses unless it is renewed.
CREATE TABLE {schema}.leases (
    lease text COLLATE "C" PRIMARY KEY,
    lapses timestamptz NOT NULL
) WITH (fillfactor = 50);

-- Presence entries, each under a lease. The entries of a lease are removed with it.
CREATE TABLE {schema}.presence (
    channel text COLLATE "C" NOT NULL,
    connection text COLLATE "C" NOT NULL,
    data bytea NOT NULL,
    lease text COLLATE "C" NOT NULL,
    PRIMARY KEY (channel, connection)
);
CREATE INDEX ON {schema}.presence (lease);

UPDATE {schema}.state SET version = 2;
