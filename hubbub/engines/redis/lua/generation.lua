-- Notices that a stream may have lost publications. Put behind stream.lua.
--
-- The *generation* of a server changes when it is restarted or a replica takes over, which may lose the newest
-- publications. A "+" at the end says that a restart loses none. See generation.py.

local function base(generation)
  return (string.gsub(generation, '%+$', ''))
end

-- The generation as the server knows it itself. The caller may not have noticed a change yet, or may be connected
-- to several servers through a proxy.
local function generation_now(generation)
  local server, replication = redis.pcall('INFO', 'server'), redis.pcall('INFO', 'replication')
  -- Where the user may not ask, the answer is an error, which is a table.
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

-- The id of the newest publication; '' if it is unknown.
local function newest_id(stream)
  local newest = top(text(stream.offset), stream.epoch, stream.newest)
  return string.sub(newest, #text(stream.offset) + #stream.epoch + 3)
end

-- Whether the stream has the publication that the caller knows: true, false, or nil if that cannot be decided.
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
  -- The id is searched for in the packed publication (core/publication.py), because Lua cannot unpack it here. Ids
  -- are long, random, and unknown to clients, so no other part of a publication contains one.
  return string.find(kept[2][4], id, 1, true) ~= nil
end

-- Give the stream a new epoch, unless it is known to be complete. Its publications are kept, but no position of the
-- old epoch can be resumed from.
--
-- is_there: whether it has the publication that the caller knows; nil if that cannot be decided.
local function settle(stream, generation, epoch, is_there)
  doubt(stream, generation)
  local stored = stream.generation
  if is_there ~= false and (generation == '' or base(generation) == base(stored)) then
    return
  end
  if generation ~= '' then
    generation = generation_now(generation)
  end
  -- A stream without a generation was written by an older version, or by a user that may not ask for it.
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
