-- Version 1 of what the engine for postgresql:// keeps in a database: one schema, named after the hub's namespace.
-- {schema} is its name as an identifier. PostgreSQL 13 or newer. What a version adds or changes is in the file with
-- its number; none is edited later. Functions are not among it: functions.sql has them all, as they are now.

CREATE TABLE {schema}.state (
    version integer NOT NULL,
    -- Which installation this is: another one after the schema was dropped and made again.
    id text NOT NULL DEFAULT gen_random_uuid()
);

-- A row for each channel. Whoever publishes holds its lock until the transaction ends: so the order of a channel
-- is the order of commits, and a snapshot that shows a publication shows all that come before it.
CREATE TABLE {schema}.streams (
    channel text COLLATE "C" PRIMARY KEY,
    -- Rises by one with every publication, kept or not. It starts with the microseconds since 1970: a stream that
    -- was forgotten and made again goes on above what nodes have seen of the one before.
    sequence bigint NOT NULL,
    -- The sequence with which the epoch began. A publication's offset is its distance from there.
    base bigint NOT NULL,
    epoch text NOT NULL,
    -- The history: publications, and seconds. NULL if the channel never had one.
    size bigint,
    ttl double precision,
    used timestamptz NOT NULL DEFAULT clock_timestamp()
) WITH (fillfactor = 50);

-- What was published. In channels without history it stays a while, only to be handed over.
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
