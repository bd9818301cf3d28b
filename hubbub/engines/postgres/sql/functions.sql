-- The functions of a schema. All of this is run when a schema is created or upgraded. Workers of earlier versions may
-- use it meanwhile: the functions that they call are kept, with their parameters. {schema} is the schema's name as an
-- identifier, {name} is its name as a string.

CREATE OR REPLACE FUNCTION {schema}.new_epoch() RETURNS text LANGUAGE sql VOLATILE AS $$
    SELECT left(gen_random_uuid()::text, 8)
$$;

-- Return the channel's stream with this history, created if there is none, and locked until the transaction ends. The
-- caller stores the differences from the table.
CREATE OR REPLACE FUNCTION {schema}.lock_stream(_channel text, _size bigint, _ttl double precision)
RETURNS {schema}.streams LANGUAGE plpgsql AS $$
DECLARE
    _stream {schema}.streams;
    _start bigint;
BEGIN
    LOOP
        SELECT * INTO _stream FROM {schema}.streams s WHERE s.channel = _channel FOR UPDATE;
        EXIT WHEN FOUND;
        _start := extract(epoch FROM clock_timestamp()) * 1000000;
        INSERT INTO {schema}.streams (channel, sequence, base, epoch)
        VALUES (_channel, _start, _start, {schema}.new_epoch())
        ON CONFLICT DO NOTHING;
    END LOOP;
    IF _size IS NOT NULL THEN
        IF _stream.size IS NULL THEN
            _stream.base := _stream.sequence;
            _stream.epoch := {schema}.new_epoch();
        END IF;
        _stream.size := _size;
        _stream.ttl := _ttl;
    END IF;
    RETURN _stream;
END
$$;

-- Publish, for the engine alone: also to the internal channels of hubs, whose names begin with \x01.
CREATE OR REPLACE FUNCTION {schema}.accept(
    _channel text, _data bytea, _kind text, _size bigint, _ttl double precision,
    _key text, _exclude text, _id text,
    OUT "offset" bigint, OUT epoch text
) LANGUAGE plpgsql AS $$
DECLARE
    _stream {schema}.streams;
    _now timestamptz;
BEGIN
    IF length(_channel) > 280 OR coalesce(_channel, '')
        !~ E'^\\u0001?[^\\u0001-\\u001f\\u007f-\\u009f\\u2028\\u2029]+$' THEN
        RAISE invalid_parameter_value USING MESSAGE = format(
            'Expected a channel of 1 to 255 characters without control characters, but got %L.',
            left(_channel, 300));
    END IF;
    IF _size <= 0 OR _ttl <= 0 THEN
        RAISE invalid_parameter_value USING MESSAGE = format(
            'Expected history_size and history_ttl to be greater than 0, but got %s and %s.', _size, _ttl);
    END IF;
    IF _size IS NOT NULL OR _ttl IS NOT NULL THEN
        _size := coalesce(_size, {default_size});
        _ttl := coalesce(_ttl, {default_ttl});
    END IF;
    _stream := {schema}.lock_stream(_channel, _size, _ttl);
    -- Read after the lock was acquired, so that times rise with offsets.
    _now := clock_timestamp();
    IF _key IS NOT NULL THEN
        SELECT k."offset", k.epoch INTO "offset", epoch FROM {schema}.keys k
        WHERE k.channel = _channel AND k.key = _key AND k.expires > _now;
        IF FOUND THEN
            RETURN;
        END IF;
    END IF;
    _stream.sequence := _stream.sequence + 1;
    UPDATE {schema}.streams s
    SET (sequence, base, epoch, size, ttl, used)
        = (_stream.sequence, _stream.base, _stream.epoch, _stream.size, _stream.ttl, _now)
    WHERE s.channel = _channel;
    IF _stream.size IS NULL THEN
        "offset" := 0;
        epoch := '';
    ELSE
        "offset" := _stream.sequence - _stream.base;
        epoch := _stream.epoch;
    END IF;
    INSERT INTO {schema}.publications (channel, sequence, "offset", epoch, time, expires, kind, exclude, id, data)
    VALUES (
        _channel, _stream.sequence, "offset", epoch, _now,
        _now + make_interval(secs => greatest(least(coalesce(_stream.ttl, 0), 3e9), {handover})),
        _kind, _exclude, coalesce(_id, gen_random_uuid()::text), _data
    );
    IF _key IS NOT NULL THEN
        INSERT INTO {schema}.keys (channel, key, "offset", epoch, expires)
        VALUES (_channel, _key, "offset", epoch, _now + make_interval(secs => {window}))
        ON CONFLICT ON CONSTRAINT keys_pkey DO UPDATE SET
            "offset" = excluded."offset", epoch = excluded.epoch, expires = excluded.expires;
    END IF;
    -- Publications beyond the history's size are deleted in small steps; readers ignore those that are left.
    IF "offset" > 0 AND "offset" % 16 = 0 THEN
        DELETE FROM {schema}.publications p WHERE (p.channel, p.sequence) IN (
            SELECT o.channel, o.sequence FROM {schema}.publications o
            WHERE o.channel = _channel AND o.sequence <= _stream.sequence - _stream.size AND o."offset" > 0
            ORDER BY o.sequence LIMIT 100
        );
    END IF;
    -- Name the channel to all nodes. Sent when the transaction commits, once for each channel. Without a notification,
    -- nodes find the publication with their next poll.
    IF current_setting('hubbub.notify', true) IS DISTINCT FROM 'off' THEN
        PERFORM pg_notify({name}, _channel);
    END IF;
END
$$;
REVOKE EXECUTE ON FUNCTION {schema}.accept FROM PUBLIC;

-- Publish to a channel of the application. Runs with the rights of the schema's owner, so that other users need USAGE
-- on the schema and nothing else.
CREATE OR REPLACE FUNCTION {schema}.append(
    _channel text, _data bytea, _kind text, _size bigint, _ttl double precision,
    _key text, _exclude text, _id text,
    OUT "offset" bigint, OUT epoch text
) LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    IF length(_channel) > 255 OR starts_with(_channel, E'\x01') THEN
        RAISE invalid_parameter_value USING MESSAGE = format(
            'Expected a channel of 1 to 255 characters without control characters, but got %L.',
            left(_channel, 300));
    END IF;
    SELECT a."offset", a.epoch INTO "offset", epoch
    FROM {schema}.accept(_channel, _data, _kind, _size, _ttl, _key, _exclude, _id) a;
END
$$;

-- Publish from any client: SELECT hubbub.publish('chat', 'hello')

CREATE OR REPLACE FUNCTION {schema}.publish(
    channel text, data text, kind text DEFAULT 'text',
    history_size bigint DEFAULT NULL, history_ttl double precision DEFAULT NULL,
    idempotency_key text DEFAULT NULL, exclude text DEFAULT NULL, id text DEFAULT NULL,
    OUT "offset" bigint, OUT epoch text
) LANGUAGE sql AS $$
    SELECT * FROM {schema}.append(
        channel, convert_to(data, 'UTF8'), kind, history_size, history_ttl, idempotency_key, exclude, id)
$$;

CREATE OR REPLACE FUNCTION {schema}.publish(
    channel text, data bytea, kind text DEFAULT 'binary',
    history_size bigint DEFAULT NULL, history_ttl double precision DEFAULT NULL,
    idempotency_key text DEFAULT NULL, exclude text DEFAULT NULL, id text DEFAULT NULL,
    OUT "offset" bigint, OUT epoch text
) LANGUAGE sql AS $$
    SELECT * FROM {schema}.append(
        channel, data, kind, history_size, history_ttl, idempotency_key, exclude, id)
$$;

CREATE OR REPLACE FUNCTION {schema}.publish(
    channel text, data json, kind text DEFAULT 'json',
    history_size bigint DEFAULT NULL, history_ttl double precision DEFAULT NULL,
    idempotency_key text DEFAULT NULL, exclude text DEFAULT NULL, id text DEFAULT NULL,
    OUT "offset" bigint, OUT epoch text
) LANGUAGE sql AS $$
    SELECT * FROM {schema}.append(
        channel, convert_to(data::text, 'UTF8'), kind, history_size, history_ttl, idempotency_key, exclude, id)
$$;

CREATE OR REPLACE FUNCTION {schema}.publish(
    channel text, data jsonb, kind text DEFAULT 'json',
    history_size bigint DEFAULT NULL, history_ttl double precision DEFAULT NULL,
    idempotency_key text DEFAULT NULL, exclude text DEFAULT NULL, id text DEFAULT NULL,
    OUT "offset" bigint, OUT epoch text
) LANGUAGE sql AS $$
    SELECT * FROM {schema}.append(
        channel, convert_to(data::text, 'UTF8'), kind, history_size, history_ttl, idempotency_key, exclude, id)
$$;

-- Read the position of a channel from any client: SELECT hubbub.position('room:1')
--
-- It is the id of the position, 'OFFSET:EPOCH'; 'start' if the channel has no history yet. Runs with the rights of the
-- schema's owner, as append does. It is STABLE, so that in one statement it shows the same moment as the rest of the
-- statement, which reads the state: a VOLATILE function would show publications that are newer than that state.
CREATE OR REPLACE FUNCTION {schema}.position(channel text) RETURNS text
LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    _channel ALIAS FOR $1;
BEGIN
    IF coalesce(_channel, '') = '' OR length(_channel) > 255 OR starts_with(_channel, E'\x01') THEN
        RAISE invalid_parameter_value USING MESSAGE = format(
            'Expected a channel of 1 to 255 characters without control characters, but got %L.',
            left(_channel, 300));
    END IF;
    RETURN coalesce(
        (SELECT (s.sequence - s.base) || ':' || s.epoch FROM {schema}.streams s
        WHERE s.channel = _channel AND s.size IS NOT NULL),
        'start');
END
$$;

-- Give a channel a history.
CREATE OR REPLACE FUNCTION {schema}.declare(_channel text, _size bigint, _ttl double precision)
RETURNS {schema}.streams LANGUAGE plpgsql AS $$
DECLARE
    _stream {schema}.streams := {schema}.lock_stream(_channel, _size, _ttl);
BEGIN
    UPDATE {schema}.streams s
    SET (base, epoch, size, ttl, used)
        = (_stream.base, _stream.epoch, _stream.size, _stream.ttl, clock_timestamp())
    WHERE s.channel = _channel;
    RETURN _stream;
END
$$;

-- Delete the publications of a channel, and begin a new epoch.
CREATE OR REPLACE FUNCTION {schema}.remove_history(_channel text) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    UPDATE {schema}.streams s
    SET base = s.sequence, epoch = {schema}.new_epoch(), used = clock_timestamp()
    WHERE s.channel = _channel AND s.size IS NOT NULL;
    DELETE FROM {schema}.publications p WHERE p.channel = _channel AND p."offset" > 0;
END
$$;

-- Presence. All functions lock in one order, a lease first and then entries by channel and connection, so that no two
-- transactions can wait for each other.

-- Renew a lease, or begin it, and make changes under it: NULL for data means that the connection leaves. Of several
-- changes to one entry, the last one counts. Returns false, and does nothing, if the lease does not exist.
CREATE OR REPLACE FUNCTION {schema}.update_presence(
    _lease text, _ttl double precision, _begin boolean, _channels text[], _connections text[], _data bytea[]
) RETURNS boolean LANGUAGE plpgsql AS $$
DECLARE
    _lapses timestamptz := clock_timestamp() + make_interval(secs => least(_ttl, 3e9));
    _change record;
BEGIN
    IF _begin THEN
        INSERT INTO {schema}.leases (lease, lapses) VALUES (_lease, _lapses)
        ON CONFLICT (lease) DO UPDATE SET lapses = excluded.lapses;
    ELSE
        UPDATE {schema}.leases l SET lapses = _lapses WHERE l.lease = _lease;
        IF NOT FOUND THEN
            RETURN false;
        END IF;
    END IF;
    FOR _change IN
        SELECT DISTINCT ON (c.channel COLLATE "C", c.connection COLLATE "C") c.channel, c.connection, c.data
        FROM unnest(_channels, _connections, _data) WITH ORDINALITY AS c (channel, connection, data, number)
        ORDER BY c.channel COLLATE "C", c.connection COLLATE "C", c.number DESC
    LOOP
        IF _change.data IS NULL THEN
            DELETE FROM {schema}.presence p
            WHERE p.channel = _change.channel AND p.connection = _change.connection;
        ELSE
            INSERT INTO {schema}.presence (channel, connection, data, lease)
            VALUES (_change.channel, _change.connection, _change.data, _lease)
            ON CONFLICT (channel, connection) DO UPDATE SET data = excluded.data, lease = excluded.lease;
        END IF;
    END LOOP;
    RETURN true;
END
$$;

-- Remove the leases that lapsed more than _grace seconds ago, and return the entries still under them. A lease
-- that is locked is being renewed, or removed by another node.
CREATE OR REPLACE FUNCTION {schema}.expire_presence(_grace double precision)
RETURNS TABLE (channel text, connection text) LANGUAGE plpgsql AS $$
DECLARE
    _oldest timestamptz := clock_timestamp() - make_interval(secs => least(_grace, 3e9));
    _lapsed text[] := ARRAY(
        SELECT l.lease FROM {schema}.leases l WHERE l.lapses < _oldest FOR UPDATE SKIP LOCKED);
BEGIN
    IF _lapsed = '{}' THEN
        RETURN;
    END IF;
    RETURN QUERY
    WITH found AS MATERIALIZED (
        SELECT p.channel, p.connection FROM {schema}.presence p WHERE p.lease = ANY (_lapsed)
        ORDER BY p.channel, p.connection FOR UPDATE
    )
    DELETE FROM {schema}.presence p USING found f
    WHERE p.channel = f.channel AND p.connection = f.connection
    RETURNING p.channel, p.connection;
    DELETE FROM {schema}.leases l WHERE l.lease = ANY (_lapsed);
END
$$;

-- Remove at most _limit rows that have expired; return how many. While another node prunes, 0. _seen is a snapshot
-- that is as old as publications are kept for nodes to read: a publication that it does not show was committed later,
-- however long ago it was published, and is left. (After an hour _seen is ignored: the number of a transaction may be
-- that of another server, from which the tables were copied.)
CREATE OR REPLACE FUNCTION {schema}.prune(_seen pg_snapshot, _limit bigint) RETURNS bigint LANGUAGE plpgsql AS $$
DECLARE
    _removed bigint;
    _more bigint;
    _now timestamptz := clock_timestamp();
BEGIN
    IF NOT pg_try_advisory_xact_lock(hashtextextended('hubbub prune ' || {name}, 0)) THEN
        RETURN 0;
    END IF;
    DELETE FROM {schema}.publications p WHERE (p.channel, p.sequence) IN (
        SELECT o.channel, o.sequence FROM {schema}.publications o
        WHERE o.expires < _now
            AND (pg_visible_in_snapshot(o.transaction, _seen) OR o.expires < _now - interval '1 hour')
        ORDER BY o.expires LIMIT _limit
    );
    GET DIAGNOSTICS _removed = ROW_COUNT;
    DELETE FROM {schema}.keys k WHERE (k.channel, k.key) IN (
        SELECT o.channel, o.key FROM {schema}.keys o WHERE o.expires < _now ORDER BY o.expires LIMIT _limit
    );
    GET DIAGNOSTICS _more = ROW_COUNT;
    RETURN _removed + _more;
END
$$;

-- Forget at most _limit streams that have been unused for long; those of _channels are in use. Rows that are locked are
-- left out.
CREATE OR REPLACE FUNCTION {schema}.prune_streams(_channels text[], _limit bigint) RETURNS bigint LANGUAGE plpgsql AS $$
DECLARE
    _removed bigint;
    _now timestamptz := clock_timestamp();
BEGIN
    UPDATE {schema}.streams s SET used = _now WHERE s.channel IN (
        SELECT o.channel FROM {schema}.streams o
        WHERE o.channel = ANY (_channels) AND o.used < _now - interval '10 minutes' FOR UPDATE SKIP LOCKED
    );
    DELETE FROM {schema}.streams s WHERE s.channel IN (
        SELECT o.channel FROM {schema}.streams o
        WHERE o.used < _now - make_interval(secs => {stream_ttl} + least(coalesce(o.ttl, 0), 3e9))
        LIMIT _limit FOR UPDATE SKIP LOCKED
    );
    GET DIAGNOSTICS _removed = ROW_COUNT;
    RETURN _removed;
END
$$;
