-- Accept a publication and announce it, in one step: what is announced first has the lower offset.
--
-- KEYS[3]  where the position is kept for its idempotency key; left out without one.
-- ARGV     the command that announces, the Redis channel, the publication, an epoch in case one begins,
--          size and ttl in ms ('' without history), ms that the idempotency key is good for.
-- Returns  the position as "offset epoch".

local command, channel, publication, epoch, size, ttl, window = unpack(ARGV)

if KEYS[3] then
  local earlier = redis.call('GET', KEYS[3])
  if earlier then
    return earlier
  end
end

local time, now = clock()
local position = '0 '
local stream = open(epoch, size, ttl)
if stream then
  local offset = text(stream.offset + 1)
  position = offset .. ' ' .. stream.epoch
  -- First of all, for it is what Redis refuses when memory is short: then nothing has happened yet.
  redis.call('XADD', KEYS[2], 'MAXLEN', '=', text(stream.size), offset .. '-0', 't', time, 'p', publication)
  redis.call('HSET', KEYS[1], 'offset', offset)
  -- Two for each one that comes, so that the old ones become fewer.
  forget(stream, now, 2)
  keep(stream)
end
if KEYS[3] then
  redis.call('SET', KEYS[3], position, 'PX', window)
end
redis.call(command, channel, position .. ' ' .. time .. ' ' .. publication)
return position
