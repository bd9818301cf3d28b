-- Whether a stream is still the one that it was. Put behind stream.lua.
--
-- A *generation* tells the data of a server from what it is after a restart, or on a replica that has taken over:
-- the last of it may be missing then. A "+" at the end: it is not, after a restart. See generation.py.

local function base(generation)
  return (string.gsub(generation, '%+$', ''))
end

-- What the server says itself. The caller may not know of a change yet, or speak through a proxy to several servers.
local function generation_now(generation)
  local server, replication = redis.pcall('INFO', 'server'), redis.pcall('INFO', 'replication')
  -- A user who may not ask gets an error, which is a table.
  if type(server) ~= 'string' or type(replication) ~= 'string' then
    return generation
  end
  local run, replica = string.match(server, 'run_id:(%w+)'), string.match(replication, 'master_replid:(%w+)')
  if not run or not replica then
    return generation
  end
  local now = string.sub(run, 1, 16) .. string.sub(replica, 1, 16)
  return now == base(generation) and generation or now
end

-- The id of the newest publication; '' if it is not known.
local function newest_id(stream)
  local newest = top(text(stream.offset), stream.epoch, stream.newest)
  return string.sub(newest, #text(stream.offset) + #stream.epoch + 3)
end

-- Whether the stream has what the caller knows to be there: true, false, or nil if that cannot be told.
local function has(stream, epoch, offset, id)
  if epoch ~= stream.epoch then
    return nil
  elseif offset > stream.offset then
    return false
  elseif offset == 0 then
    return true
  elseif id == '' then
    return nil
  elseif offset == stream.offset and newest_id(stream) ~= '' then
    return newest_id(stream) == id
  end
  local kept = redis.call('XRANGE', KEYS[2], text(offset), text(offset))[1]
  if not kept then
    return nil
  end
  -- As a part of what is packed (core/publication.py): Lua here cannot unpack bytes. Ids are random and long, and
  -- clients do not get to see them, so it is no part of anything else.
  return string.find(kept[2][4], id, 1, true) ~= nil
end

-- Give the stream a new epoch, unless it is known to be complete. What it has kept stays, but no position of the
-- old epoch leads into it.
--
-- is_there: whether it has what the caller knows to be there; nil if that cannot be told.
local function settle(stream, generation, epoch, is_there)
  doubt(stream, generation)
  local stored = stream.generation
  if is_there ~= false and (generation == '' or base(generation) == base(stored)) then
    return
  end
  if generation ~= '' then
    generation = generation_now(generation)
  end
  -- Without one, it was written by an older version, or by a user who may not ask.
  local is_same = generation == '' or stored == '' or base(generation) == base(stored)
  local is_durable = string.sub(stored, -1) == '+' and string.sub(generation, -1) == '+'
  if is_there == false or not (is_same or is_there or is_durable) then
    stream.newest = text(stream.offset) .. ' ' .. epoch .. ' ' .. newest_id(stream)
    stream.epoch = epoch
    redis.call('HSET', KEYS[1], 'epoch', epoch, 'newest', stream.newest)
  end
  if generation ~= '' and (stored == '' or not is_same) then
    redis.call('HSET', KEYS[1], 'generation', generation)
  end
end
