-- Read the ends of streams, without their publications.
--
-- KEYS     the hash of each channel's stream, see stream.lua.
-- Returns  "offset epoch id" of the newest publication of each.

local tops = {}
for index, key in ipairs(KEYS) do
  local epoch, offset, newest, ttl = unpack(redis.call('HMGET', key, 'epoch', 'offset', 'newest', 'ttl'))
  if epoch then
    touch(key, tonumber(ttl))
    tops[index] = top(offset, epoch, newest or '')
  else
    tops[index] = '0  '
  end
end
return tops
