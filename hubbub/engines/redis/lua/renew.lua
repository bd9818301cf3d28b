-- Renew a lease or begin it, and note where there are about to be entries under it.
--
-- KEYS[1]  sorted set: when each lease lapses, in ms. Negative while somebody removes what is under it: minus
--          the time from which another one may go on with that.
-- KEYS[2]  sorted set: the channels in which there may be entries under this lease, and when each was last
--          made to live on, in ms.
-- ARGV     the lease, ms until it lapses, whether it begins ('1' or ''), ms that everything lives on for, ms
--          after which a channel is to be made to live on, how many of those to tell, channels to note.
-- Returns  channels that are to be made to live on; or nil if the lease is not there: nothing is done then.

local lease, ttl, begins, keep, refresh, limit = unpack(ARGV, 1, 6)

local lapses = tonumber(redis.call('ZSCORE', KEYS[1], lease) or nil)
if lapses and lapses < 0 or not lapses and begins == '' then
  return nil
end
local time = now()
-- First of all, for when memory is short, Redis refuses what adds to it only at the beginning of a script.
-- To be renewed, a lease needs no more memory.
redis.call('PEXPIRE', KEYS[1], keep)
redis.call('ZADD', KEYS[1], time + ttl, lease)
if not lapses then
  redis.call('PEXPIRE', KEYS[1], keep)
end
for index = 7, #ARGV do
  redis.call('ZADD', KEYS[2], time, ARGV[index])
end
local old = redis.call('ZRANGEBYSCORE', KEYS[2], '-inf', time - refresh, 'LIMIT', 0, limit)
for _, channel in ipairs(old) do
  redis.call('ZADD', KEYS[2], time, channel)
end
redis.call('PEXPIRE', KEYS[2], keep)
return old
