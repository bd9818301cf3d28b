-- The stream of a channel. Put in front of every script of streams.
--
-- KEYS[1]  hash: epoch, offset of the last publication, size, ttl in ms; newest: the position and the id of the last
--          publication; generation: of the server on which the stream is known to be complete. Expires after the
--          log, so that offsets continue to rise when all publications have expired.
-- KEYS[2]  the log, a Redis stream. An entry's id is its offset; t: the time of acceptance; p: the publication.

-- Milliseconds that a stream is kept after its last publication has expired.
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

-- Refresh both keys, as after a publication.
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
    -- Entries of an earlier epoch, if any are left, have offsets that will be given out again.
    redis.call('DEL', KEYS[2])
    keep(stream)
  elseif size ~= '' and (stored[3] ~= size or stored[4] ~= ttl) then
    stream.size, stream.ttl = tonumber(size), tonumber(ttl)
    redis.call('HSET', KEYS[1], 'size', size, 'ttl', ttl)
    keep(stream)
  end
  return stream
end

-- Take the "+" from the stream's generation (generation.lua), if the server has none any more: its configuration was
-- changed, or it has replicas, so that a restart may lose publications.
local function doubt(stream, generation)
  if string.sub(stream.generation, -1) == '+' and generation ~= '' and string.sub(generation, -1) ~= '+' then
    stream.generation = string.sub(stream.generation, 1, -2)
    redis.call('HSET', KEYS[1], 'generation', stream.generation)
  end
end

-- Refresh a stream's key because it is used; but not for every read, which would be many writes.
local function touch(key, ttl)
  if redis.call('PTTL', key) < (ttl + STREAM_TTL) / 2 then
    redis.call('PEXPIRE', key, text(ttl + STREAM_TTL))
  end
end

-- The end of a stream, as "offset epoch id". The id is empty if there was no publication yet, or if the last one was
-- published by an older version of these scripts, which does not write it.
local function top(offset, epoch, newest)
  local position = offset .. ' ' .. epoch .. ' '
  return string.sub(newest, 1, #position) == position and newest or position
end

-- The first entry from an offset on: its offset and its time of acceptance, or nil. One entry at a time, because
-- each is copied with its payload.
local function entry(offset)
  local found = redis.call('XRANGE', KEYS[2], text(offset), '+', 'COUNT', 1)[1]
  if found then
    return tonumber(string.match(found[1], '^%d+')), tonumber(found[2][2])
  end
end

-- Drop expired entries, at most `limit`. If the oldest one is not expired, no other is read.
local function forget(stream, now, limit)
  local oldest = now - stream.ttl / 1000
  local first, time = entry(0)
  if not first or time >= oldest then
    return
  end
  -- The last entry that is known to be expired, and the first offset that is known not to be, or is beyond `limit`.
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
