-- Accept a publication and announce it in one step, so that announcements are in the order of the offsets.
--
-- This script does not examine whether the stream is complete (generation.lua). Readers do, and may know of more
-- publications. Until then the stream stays in its epoch.
--
-- KEYS[3]  the position of the publication with this idempotency key; left out without a key.
-- ARGV     the server's generation, an epoch in case one begins, size and ttl in ms ('' without history), the
--          command to announce with, the topic, the publication, its id, ms until the idempotency key expires.
-- Returns  the position as "offset epoch".

local generation, epoch, size, ttl, command, channel, publication, id, window = unpack(ARGV)

-- The most expired publications that are dropped with each new one.
local DROPPED = 1000

if KEYS[3] then
  local earlier = redis.call('GET', KEYS[3])
  if earlier then
    return earlier
  end
end

local time, now = clock()
local position = '0 '
local stream = open(generation, epoch, size, ttl)
if stream then
  local offset = text(stream.offset + 1)
  position = offset .. ' ' .. stream.epoch
  -- The first write, because Redis refuses it when it is out of memory: then nothing has been changed yet.
  redis.call('XADD', KEYS[2], 'MAXLEN', '=', text(stream.size), offset .. '-0', 't', time, 'p', publication)
  redis.call('HSET', KEYS[1], 'offset', offset, 'newest', position .. ' ' .. id)
  doubt(stream, generation)
  forget(stream, now, DROPPED)
  keep(stream)
end
if KEYS[3] then
  redis.call('SET', KEYS[3], position, 'PX', window)
end
redis.call(command, channel, position .. ' ' .. time .. ' ' .. publication)
return position
