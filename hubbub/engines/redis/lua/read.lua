-- Read the position of a channel and its publications at one moment.
--
-- ARGV     the server's generation, an epoch in case one begins, size and ttl in ms ('' for no change), the
--          expected epoch ('*' for any), the first and the last offset in the order of reading, the most
--          publications ('' for all), 'XRANGE' or 'XREVRANGE'.
-- Returns  "offset epoch id" of the newest publication, and entries of the log.

local generation, epoch, size, ttl, expected, first, last, limit, command = unpack(ARGV)

local stream = open(generation, epoch, size, ttl)
if not stream then
  return {'0  ', {}}
end
settle(stream, generation, epoch)
touch(KEYS[1], stream.ttl)
local newest = top(text(stream.offset), stream.epoch, stream.newest)
if limit == '0' or (expected ~= '*' and expected ~= stream.epoch) then
  return {newest, {}}
end
local _, now = clock()
forget(stream, now, math.huge)
redis.call('XTRIM', KEYS[2], 'MAXLEN', '=', text(stream.size))
if limit == '' then
  return {newest, redis.call(command, KEYS[2], first, last)}
end
return {newest, redis.call(command, KEYS[2], first, last, 'COUNT', limit)}
