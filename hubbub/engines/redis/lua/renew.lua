-- Renew a lease or begin it, and note the channels that are about to have entries under it.
--
-- KEYS[1]  sorted set: when each lease lapses, in ms. Negative while a process removes the lease: minus the time
--          from which another process may continue the removal.
-- KEYS[2]  sorted set: the channels that may have entries under this lease, and when the key of each was last
--          refreshed, in ms.
-- ARGV     the lease, ms until it lapses, whether it begins ('1' or ''), ms until keys expire, ms after which a
--          channel's key is to be refreshed, the most such channels to return, channels to note.
-- Returns  channels whose keys are to be refreshed; or nil if the lease does not exist: then nothing is done.

local lease, ttl, begins, keep, refresh, limit = unpack(ARGV, 1, 6)

local lapses = tonumber(redis.call('ZSCORE', KEYS[1], lease) or nil)
if lapses and lapses < 0 or not lapses and begins == '' then
  return nil
end
local time = now()
-- PEXPIRE before ZADD: when it is out of memory, Redis refuses a write that needs memory only if it is the first
-- one of a script. So a lease can be renewed, which needs no more memory.
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
