-- Make and remove presence entries of a channel, and refresh its key.
--
-- KEYS[1]  hash: '=' and a connection: its lease, a zero byte, its data;
--          '#' and a lease: the number of entries under it.
-- ARGV     the lease, ms until the key expires; and for each change the connection and its entry, '' to remove
--          it.
-- Returns  whether the channel has entries under the lease now (1 or 0).

local lease, keep = ARGV[1], ARGV[2]

local function count(under, difference)
  if redis.call('HINCRBY', KEYS[1], '#' .. under, difference) <= 0 then
    redis.call('HDEL', KEYS[1], '#' .. under)
  end
end

for index = 3, #ARGV, 2 do
  local field, entry = '=' .. ARGV[index], ARGV[index + 1]
  local earlier = redis.call('HGET', KEYS[1], field)
  local before = earlier and string.sub(earlier, 1, string.find(earlier, '\0', 1, true) - 1)
  local after = entry ~= '' and lease
  if after then
    redis.call('HSET', KEYS[1], field, entry)
  elseif before then
    redis.call('HDEL', KEYS[1], field)
  end
  if after ~= before then
    if before then
      count(before, -1)
    end
    if after then
      count(after, 1)
    end
  end
end
redis.call('PEXPIRE', KEYS[1], keep)
return redis.call('HEXISTS', KEYS[1], '#' .. lease)
