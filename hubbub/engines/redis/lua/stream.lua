-- A channel's stream, as it lies in Redis. Put in front of every script of streams.
--
-- KEYS[1]  hash: epoch, offset of the last publication, size, ttl in ms; newest: the position and the id of the last
--          publication; generation: of the server on which the stream is known to be complete. Outlives the log,
--          so that the offsets go on rising when everything that was kept has become too old.
-- KEYS[2]  the log, a Redis stream. An entry's id is its offset; t: when it was accepted; p: the publication.

-- Milliseconds that a stream is remembered after the last of its publications is gone.
local STREAM_TTL = 3600000

local function text(number)
  -- tostring() writes large numbers as 1e+15.
  return string.format('%.0f', number)
end

-- The time as text, in seconds with six decimals, and as a number.
local function clock()
  local time = redis.call('TIME')
  local now = string.format('%s.%06d', time[1], time[2])
  return now, tonumber(now)
end

-- Both keys live on for as long as they would after a publication.
local function keep(stream)
  redis.call('PEXPIRE', KEYS[1], text(stream.ttl + STREAM_TTL))
  redis.call('PEXPIRE', KEYS[2], text(stream.ttl))
end

-- The stream, or nil if the channel has none and size is ''.
local function open(generation, epoch, size, ttl)
  local stored = redis.call('HMGET', KEYS[1], 'epoch', 'offset', 'size', 'ttl', 'newest', 'generation')
  local stream = {
    epoch = stored[1] or epoch,
    offset = tonumber(stored[2] or 0),
    size = tonumber(stored[3] or size),
    ttl = tonumber(stored[4] or ttl),
    newest = stored[5] or '',
    generation = stored[6] or '',
  }
  if not stored[1] then
    if size == '' then
      return nil
    end
    stream.generation = generation
    redis.call('HSET', KEYS[1], 'epoch', epoch, 'offset', 0, 'size', size, 'ttl', ttl, 'generation', generation)
    -- What may be left of an earlier epoch has offsets that come again.
    redis.call('DEL', KEYS[2])
    keep(stream)
  elseif size ~= '' and (stored[3] ~= size or stored[4] ~= ttl) then
    stream.size, stream.ttl = tonumber(size), tonumber(ttl)
    redis.call('HSET', KEYS[1], 'size', size, 'ttl', ttl)
    keep(stream)
  end
  return stream
end

-- Take the "+" from the stream's generation (generation.lua), for something may be lost now that is in use without
-- one: the server is set up otherwise by now, or has replicas.
local function doubt(stream, generation)
  if string.sub(stream.generation, -1) == '+' and generation ~= '' and string.sub(generation, -1) ~= '+' then
    stream.generation = string.sub(stream.generation, 1, -2)
    redis.call('HSET', KEYS[1], 'generation', stream.generation)
  end
end

-- A stream that is looked at is in use. A write for every look would be many.
local function touch(key, ttl)
  if redis.call('PTTL', key) < (ttl + STREAM_TTL) / 2 then
    redis.call('PEXPIRE', key, text(ttl + STREAM_TTL))
  end
end

-- Where a stream stands, as "offset epoch id". The id is empty if nothing was published yet, or if an older version
-- of these scripts, which does not write it, has published since.
local function top(offset, epoch, newest)
  local position = offset .. ' ' .. epoch .. ' '
  return string.sub(newest, 1, #position) == position and newest or position
end

-- The first entry from an offset on: its offset and when it was accepted, or nil. One at a time, for each is copied
-- with its payload.
local function entry(offset)
  local found = redis.call('XRANGE', KEYS[2], text(offset), '+', 'COUNT', 1)[1]
  if found then
    return tonumber(string.match(found[1], '^%d+')), tonumber(found[2][2])
  end
end

-- Drop what is too old, at most `limit` entries. If the oldest one is not, no other is looked at.
local function forget(stream, now, limit)
  local oldest = now - stream.ttl / 1000
  local first, time = entry(0)
  if not first or time >= oldest then
    return
  end
  -- The last entry that is known to be too old, and the first offset that is known not to be, or is too far.
  local last, beyond = first, math.min(stream.offset + 1, first + limit)
  while beyond - last > 1 do
    local middle = math.floor((last + beyond) / 2)
    local offset, accepted = entry(middle)
    if not offset or offset >= beyond or accepted >= oldest then
      beyond = middle
    else
      last = offset
    end
  end
  redis.call('XTRIM', KEYS[2], 'MINID', '=', text(last + 1))
end
