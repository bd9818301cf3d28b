-- Remove the publications of a channel and give it a new epoch.
--
-- ARGV     the server's generation, the epoch.

if redis.call('EXISTS', KEYS[1]) == 1 then
  redis.call('HSET', KEYS[1], 'epoch', ARGV[2], 'offset', 0, 'generation', ARGV[1])
  redis.call('DEL', KEYS[2])
end
