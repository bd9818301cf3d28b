-- Give a stream a new epoch, unless it has another one by now than the caller knows.
--
-- ARGV     the server's generation, the new epoch, the one that the caller knows.

local generation, epoch, known = unpack(ARGV)

local stream = open(generation, epoch, '', '')
if stream and stream.epoch == known then
  settle(stream, generation, epoch, false)
end
