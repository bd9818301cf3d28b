-- Give a stream a new epoch, unless its epoch is not the one any more that the caller knows.
--
-- ARGV     the server's generation, the new epoch, the epoch that the caller knows.

local generation, epoch, known = unpack(ARGV)

local stream = open(generation, epoch, '', '')
if stream and stream.epoch == known then
  settle(stream, generation, epoch, false)
end
