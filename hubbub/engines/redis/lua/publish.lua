-- Accept a publication and announce it, in one step: what is announced first has the lower offset.
--
-- It does not ask whether the stream is complete (generation.lua): those who read it do, and may know better. Until
-- one has, it goes on in the epoch that it has.
--
-- KEYS[3]  where the position is kept for its idempotency key; left out without one.
-- ARGV     the server's generation, an epoch in case one begins, size and ttl in ms ('' without history), the
--          command that announces, the Redis channel, the publication, its id, ms that the idempotency key is good
--          for.
-- Returns  the position as "offset epoch".

local generation, epoch, size, ttl, command, channel, publication, id, window = unpack(ARGV)

-- Publications that are too old to be kept, dropped for each one that comes, at the most.
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
  -- First of all, for it is what Redis refuses when memory is short: then nothing has happened yet.
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
