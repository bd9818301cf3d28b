-- Forget what a channel has kept and give it a new epoch.
--
-- ARGV     the epoch.

if redis.call('EXISTS', KEYS[1]) == 1 then
  redis.call('HSET', KEYS[1], 'epoch', ARGV[1], 'offset', 0)
  redis.call('DEL', KEYS[2])
end
