-- Remove a channel's entries under a lease, a part of them at a time. Connections that were entered again under
-- another lease keep their entry.
--
-- KEYS[1]  see enter.lua.
-- ARGV     the lease, the cursor that was returned last ('0' to begin), the number of entries to examine.
-- Returns  a cursor, '0' when all entries are removed; and the connections whose entries this call has removed.

local lease, cursor, limit = unpack(ARGV)
local counter, mine = '#' .. lease, lease .. '\0'

if redis.call('HEXISTS', KEYS[1], counter) == 0 then
  return {'0', {}}
end
local following, entries = unpack(redis.call('HSCAN', KEYS[1], cursor, 'COUNT', limit))
local removed = {}
for index = 1, #entries, 2 do
  local field, entry = entries[index], entries[index + 1]
  if string.sub(field, 1, 1) == '=' and string.sub(entry, 1, #mine) == mine then
    -- HSCAN may return a field twice.
    if redis.call('HDEL', KEYS[1], field) == 1 then
      table.insert(removed, string.sub(field, 2))
    end
  end
end
local left = 1
if #removed > 0 then
  left = redis.call('HINCRBY', KEYS[1], counter, -#removed)
end
if following == '0' or left <= 0 then
  redis.call('HDEL', KEYS[1], counter)
  return {'0', removed}
end
return {following, removed}
