-- Remove the notes of channels that have no entries under a lease any more; and with the last note the lease, if
-- it was claimed.
--
-- KEYS     see renew.lua.
-- ARGV     the lease, the channels.
-- Returns  whether the lease has no notes any more (1 or 0).

local lease = ARGV[1]

for index = 2, #ARGV do
  redis.call('ZREM', KEYS[2], ARGV[index])
end
if redis.call('EXISTS', KEYS[2]) == 1 then
  return 0
end
local lapses = redis.call('ZSCORE', KEYS[1], lease)
if lapses and tonumber(lapses) < 0 then
  redis.call('ZREM', KEYS[1], lease)
end
return 1
