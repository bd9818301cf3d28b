-- Claim lapsed leases for removal: from now on they cannot be renewed.
--
-- KEYS[1]  see renew.lua.
-- ARGV     ms for which a lease must have been lapsed, ms after which another process may claim it again.
-- Returns  the claimed leases.

local grace, turn = ARGV[1], ARGV[2]

local time = now()
local claimed = {}
local lapsed = redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', '(' .. string.format('%.0f', time - grace), 'WITHSCORES')
for index = 1, #lapsed, 2 do
  if -tonumber(lapsed[index + 1]) <= time then
    redis.call('ZADD', KEYS[1], -(time + turn), lapsed[index])
    table.insert(claimed, lapsed[index])
  end
end
return claimed
