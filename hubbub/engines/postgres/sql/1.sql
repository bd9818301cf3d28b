-- Version 1 of the tables of the engine for postgresql://: one schema, named after the hub's namespace. {schema} is its
-- name as an identifier. PostgreSQL 13 or newer. The additions and changes of a version are in the file with its
-- number, whose statements are not edited later. Functions are in functions.sql, all of them, as they are now.

CREATE TABLE {schema}.state (
    version integer NOT NULL,
    -- The id of the installation: another one after the schema was dropped and created again.
    id text NOT NULL DEFAULT gen_random_uuid()
);

-- A row for each channel. A transaction that publishes locks the row until it ends: so the order of a channel is the
-- order of commits, and a snapshot that shows a publication shows all publications before it.
CREATE TABLE {schema}.streams (
    channel text COLLATE "C" PRIMARY KEY,
    -- Rises by one with every publication, kept or not. It starts with the microseconds since 1970: a stream that
    -- was forgotten and created again continues above the sequences that nodes have seen of the earlier one.
    sequence bigint NOT NULL,
    -- The sequence with which the epoch began. A publication's offset is its distance from this sequence.
    base bigint NOT NULL,
    epoch text NOT NULL,
    -- The history: the number of publications, and seconds. NULL if the channel never had a history.
    size bigint,
    ttl double precision,
    used timestamptz NOT NULL DEFAULT clock_timestamp()
) WITH (fillfactor = 50);

-- Publications. Those to channels without history are kept for a minute, only for nodes to read them.
CREATE TABLE {schema}.publications (
    channel text COLLATE "C" NOT NULL,
    sequence bigint NOT NULL,
    "offset" bigint NOT NULL,
    epoch text NOT NULL,
    time timestamptz NOT NULL,
    expires timestamptz NOT NULL,
    transaction xid8 NOT NULL DEFAULT pg_current_xact_id(),
    kind text NOT NULL CHECK (kind IN ('text', 'binary', 'json')),
    exclude text,
    id text NOT NULL,
    data bytea NOT NULL,
    PRIMARY KEY (channel, sequence)
);
CREATE INDEX ON {schema}.publications (expires);

CREATE TABLE {schema}.keys (
    channel text COLLATE "C" NOT NULL,
    key text COLLATE "C" NOT NULL,
    "offset" bigint NOT NULL,
    epoch text NOT NULL,
    expires timestamptz NOT NULL,
    PRIMARY KEY (channel, key)
);
CREATE INDEX ON {schema}.keys (expires);

INSERT INTO {schema}.state (version) VALUES (1);
