-- The schema of version 1, as it is when a newer version of Hubbub starts for the first time.

CREATE TABLE {schema}.state (
    version integer NOT NULL,
    id text NOT NULL DEFAULT gen_random_uuid()
);

CREATE TABLE {schema}.streams (
    channel text COLLATE "C" PRIMARY KEY,
    sequence bigint NOT NULL,
    base bigint NOT NULL,
    epoch text NOT NULL,
    size bigint,
    ttl double precision,
    used timestamptz NOT NULL DEFAULT clock_timestamp()
) WITH (fillfactor = 50);

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

CREATE FUNCTION {schema}.new_epoch() RETURNS text LANGUAGE sql VOLATILE AS $$
    SELECT left(gen_random_uuid()::text, 8)
$$;

CREATE FUNCTION {schema}.lock_stream(_channel text, _size bigint, _ttl double precision)
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

CREATE FUNCTION {schema}.append(
    _channel text, _data bytea, _kind text, _size bigint, _ttl double precision,
    _key text, _exclude text, _id text,
    OUT "offset" bigint, OUT epoch text
) LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    _stream {schema}.streams;
    _now timestamptz;
BEGIN
    IF coalesce(_channel, '') = '' OR length(_channel) > 255
        OR _channel ~ E'[\\u0001-\\u001f\\u007f-\\u009f\\u2028\\u2029]' THEN
        RAISE invalid_parameter_value USING MESSAGE = format(
            'Expected a channel of 1 to 255 characters without control characters, but got %L.',
            left(_channel, 300));
    END IF;
    IF _size <= 0 OR _ttl <= 0 THEN
        RAISE invalid_parameter_value USING MESSAGE = format(
            'Expected history_size and history_ttl to be greater than 0, but got %s and %s.', _size, _ttl);
    END IF;
    IF _size IS NOT NULL OR _ttl IS NOT NULL THEN
        _size := coalesce(_size, 100);
        _ttl := coalesce(_ttl, 300);
    END IF;
    _stream := {schema}.lock_stream(_channel, _size, _ttl);
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
        _now + make_interval(secs => greatest(least(coalesce(_stream.ttl, 0), 3e9), 60.0)),
        _kind, _exclude, coalesce(_id, gen_random_uuid()::text), _data
    );
    IF _key IS NOT NULL THEN
        INSERT INTO {schema}.keys (channel, key, "offset", epoch, expires)
        VALUES (_channel, _key, "offset", epoch, _now + make_interval(secs => 300.0))
        ON CONFLICT ON CONSTRAINT keys_pkey DO UPDATE SET
            "offset" = excluded."offset", epoch = excluded.epoch, expires = excluded.expires;
    END IF;
    IF "offset" > 0 AND "offset" % 16 = 0 THEN
        DELETE FROM {schema}.publications p WHERE (p.channel, p.sequence) IN (
            SELECT o.channel, o.sequence FROM {schema}.publications o
            WHERE o.channel = _channel AND o.sequence <= _stream.sequence - _stream.size AND o."offset" > 0
            ORDER BY o.sequence LIMIT 100
        );
    END IF;
    PERFORM pg_notify({name}, _channel);
END
$$;


CREATE FUNCTION {schema}.publish(
    channel text, data text, kind text DEFAULT 'text',
    history_size bigint DEFAULT NULL, history_ttl double precision DEFAULT NULL,
    idempotency_key text DEFAULT NULL, exclude text DEFAULT NULL, id text DEFAULT NULL,
    OUT "offset" bigint, OUT epoch text
) LANGUAGE sql AS $$
    SELECT * FROM {schema}.append(
        channel, convert_to(data, 'UTF8'), kind, history_size, history_ttl, idempotency_key, exclude, id)
$$;

CREATE FUNCTION {schema}.publish(
    channel text, data bytea, kind text DEFAULT 'binary',
    history_size bigint DEFAULT NULL, history_ttl double precision DEFAULT NULL,
    idempotency_key text DEFAULT NULL, exclude text DEFAULT NULL, id text DEFAULT NULL,
    OUT "offset" bigint, OUT epoch text
) LANGUAGE sql AS $$
    SELECT * FROM {schema}.append(
        channel, data, kind, history_size, history_ttl, idempotency_key, exclude, id)
$$;

CREATE FUNCTION {schema}.publish(
    channel text, data json, kind text DEFAULT 'json',
    history_size bigint DEFAULT NULL, history_ttl double precision DEFAULT NULL,
    idempotency_key text DEFAULT NULL, exclude text DEFAULT NULL, id text DEFAULT NULL,
    OUT "offset" bigint, OUT epoch text
) LANGUAGE sql AS $$
    SELECT * FROM {schema}.append(
        channel, convert_to(data::text, 'UTF8'), kind, history_size, history_ttl, idempotency_key, exclude, id)
$$;

CREATE FUNCTION {schema}.publish(
    channel text, data jsonb, kind text DEFAULT 'json',
    history_size bigint DEFAULT NULL, history_ttl double precision DEFAULT NULL,
    idempotency_key text DEFAULT NULL, exclude text DEFAULT NULL, id text DEFAULT NULL,
    OUT "offset" bigint, OUT epoch text
) LANGUAGE sql AS $$
    SELECT * FROM {schema}.append(
        channel, convert_to(data::text, 'UTF8'), kind, history_size, history_ttl, idempotency_key, exclude, id)
$$;

CREATE FUNCTION {schema}.declare(_channel text, _size bigint, _ttl double precision)
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

CREATE FUNCTION {schema}.remove_history(_channel text) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    UPDATE {schema}.streams s
    SET base = s.sequence, epoch = {schema}.new_epoch(), used = clock_timestamp()
    WHERE s.channel = _channel AND s.size IS NOT NULL;
    DELETE FROM {schema}.publications p WHERE p.channel = _channel AND p."offset" > 0;
END
$$;

CREATE FUNCTION {schema}.prune(_seen pg_snapshot, _limit bigint) RETURNS bigint LANGUAGE plpgsql AS $$
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

CREATE FUNCTION {schema}.prune_streams(_channels text[], _limit bigint) RETURNS bigint LANGUAGE plpgsql AS $$
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
        WHERE o.used < _now - make_interval(secs => 3600.0 + least(coalesce(o.ttl, 0), 3e9))
        LIMIT _limit FOR UPDATE SKIP LOCKED
    );
    GET DIAGNOSTICS _removed = ROW_COUNT;
    RETURN _removed;
END
$$;

INSERT INTO {schema}.state (version) VALUES (1);
