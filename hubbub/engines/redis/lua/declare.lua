-- Declare a channel's history again, if its stream is gone; if not, compare it with what the caller knows. For a node
-- that was away, before it goes on.
--
-- ARGV     the server's generation, an epoch in case one begins, size and ttl in ms ('' without history), epoch,
--          offset and id of the newest publication that the caller knows; the epoch is '' if there is none.
-- Returns  "offset epoch id" of the newest publication.

local generation, epoch, size, ttl, known_epoch, known_offset, known_id = unpack(ARGV)

if redis.call('EXISTS', KEYS[1]) == 1 then
  -- It may have been declared otherwise meanwhile.
  size, ttl = '', ''
end
local stream = open(generation, epoch, size, ttl)
if not stream then
  return '0  '
end
settle(stream, generation, epoch, has(stream, known_epoch, tonumber(known_offset), known_id))
touch(KEYS[1], stream.ttl)
return top(text(stream.offset), stream.epoch, stream.newest)
