-- A channel's stream, as it lies in Redis. Put in front of every other script here.
--
-- KEYS[1]  hash: epoch, offset of the last publication, size, ttl in ms. Outlives the log, so that the
--          offsets go on rising when everything that was kept has become too old.
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
local function open(epoch, size, ttl)
  local stored = redis.call('HMGET', KEYS[1], 'epoch', 'offset', 'size', 'ttl')
  local stream = {
    epoch = stored[1] or epoch,
    offset = tonumber(stored[2] or 0),
    size = tonumber(stored[3] or size),
    ttl = tonumber(stored[4] or ttl),
  }
  if not stored[1] then
    if size == '' then
      return nil
    end
    redis.call('HSET', KEYS[1], 'epoch', epoch, 'offset', 0, 'size', size, 'ttl', ttl)
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

-- Drop what is too old, at most `limit` entries. Returns how many were looked at and dropped.
local function forget(stream, now, limit)
  local oldest = now - stream.ttl / 1000
  local last = nil
  local count = 0
  for _, entry in ipairs(redis.call('XRANGE', KEYS[2], '-', '+', 'COUNT', limit)) do
    if tonumber(entry[2][2]) >= oldest then
      break
    end
    last = entry[1]
    count = count + 1
  end
  if last then
    local offset = tonumber(string.match(last, '^%d+'))
    redis.call('XTRIM', KEYS[2], 'MINID', '=', text(offset + 1))
  end
  return count
end
