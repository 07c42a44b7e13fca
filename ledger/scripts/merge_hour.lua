-- Merge the sums of one hour into those of another: the first of its day.
--
-- KEYS    1 hours, 2 bucket to merge, 3 bucket that takes it in, 4 rollups
-- ARGV    1 hour to merge (seconds), 2 the other hour, 3... names of the roll-ups both are in
-- Returns how many fields were merged; 0 where the hour has no bucket (any more).
local fields = redis.call('HGETALL', KEYS[2])
for i = 1, #fields, 2 do
  redis.call('HINCRBY', KEYS[3], fields[i], fields[i + 1])
end
if #fields > 0 then
  redis.call('ZADD', KEYS[1], ARGV[2], ARGV[2])
end
-- Who is adding up these hours now may have read one of them before and the other after this.
for i = 3, #ARGV do
  local state = redis.call('HGET', KEYS[4], ARGV[i])
  if state and state ~= 'ok' then
    redis.call('HDEL', KEYS[4], ARGV[i])
  end
end
redis.call('DEL', KEYS[2])
redis.call('ZREM', KEYS[1], ARGV[1])
return #fields / 2
