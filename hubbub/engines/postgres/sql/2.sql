-- Version 2: presence, and which versions can use a schema.

-- The version that one has to know at least to use this schema. A step that only adds something leaves it as it is:
-- then workers that do not know that step can still connect.
ALTER TABLE {schema}.state ADD COLUMN usable_from integer NOT NULL DEFAULT 2;

-- What nodes enter somebody under, and when that lapses unless it is renewed.
CREATE TABLE {schema}.leases (
    lease text COLLATE "C" PRIMARY KEY,
    lapses timestamptz NOT NULL
) WITH (fillfactor = 50);

-- Who is in a channel, and under which lease. What is under a lease is removed with it.
CREATE TABLE {schema}.presence (
    channel text COLLATE "C" NOT NULL,
    connection text COLLATE "C" NOT NULL,
    data bytea NOT NULL,
    lease text COLLATE "C" NOT NULL,
    PRIMARY KEY (channel, connection)
);
CREATE INDEX ON {schema}.presence (lease);

UPDATE {schema}.state SET version = 2;
