-- Declare a channel's history again if its stream does not exist any more; otherwise compare the stream with the
-- publication that the caller knows. Run by a node after an outage, before any other command.
--
-- ARGV     the server's generation, an epoch in case one begins, size and ttl in ms ('' without history), epoch,
--          offset and id of the newest publication that the caller knows; the epoch is '' if there is none.
-- Returns  "offset epoch id" of the newest publication.

local generation, epoch, size, ttl, known_epoch, known_offset, known_id = unpack(ARGV)

if redis.call('EXISTS', KEYS[1]) == 1 then
  -- Keep the stream's own history: another node may have declared another one meanwhile.
  size, ttl = '', ''
end
local stream = open(generation, epoch, size, ttl)
if not stream then
  return '0  '
end
settle(stream, generation, epoch, has(stream, known_epoch, tonumber(known_offset), known_id))
touch(KEYS[1], stream.ttl)
return top(text(stream.offset), stream.epoch, stream.newest)
