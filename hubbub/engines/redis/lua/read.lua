-- Where a channel stands and what it has kept, at one moment.
--
-- ARGV     an epoch in case one begins, size and ttl in ms ('' for no change), the epoch that is expected
--          ('*' for any), the first offset and the last one in the order of reading, the most that is wanted
--          ('' for all), 'XRANGE' or 'XREVRANGE'.
-- Returns  the position as "offset epoch", and entries of the log.

local epoch, size, ttl, expected, first, last, limit, command = unpack(ARGV)

local stream = open(epoch, size, ttl)
if not stream then
  return {'0 ', {}}
end
-- A stream that is looked at is in use. A write for every look would be many.
if redis.call('PTTL', KEYS[1]) < (stream.ttl + STREAM_TTL) / 2 then
  redis.call('PEXPIRE', KEYS[1], text(stream.ttl + STREAM_TTL))
end
local position = text(stream.offset) .. ' ' .. stream.epoch
if limit == '0' or (expected ~= '*' and expected ~= stream.epoch) then
  return {position, {}}
end
local _, now = clock()
while forget(stream, now, 100) == 100 do
end
redis.call('XTRIM', KEYS[2], 'MAXLEN', '=', text(stream.size))
if limit == '' then
  return {position, redis.call(command, KEYS[2], first, last)}
end
return {position, redis.call(command, KEYS[2], first, last, 'COUNT', limit)}
