-- Take a notice that is due, to send it: from now on it says what it says, and comes up again only after a while.
--
-- KEYS    1 notices, 2 due, 3 open, 4 last
-- ARGV    1 id, 2 now_ms, 3 for how long (ms) nobody else takes it
-- Returns the notice (JSON); nil where it is gone, or in somebody's hands.
local due = redis.call('ZSCORE', KEYS[2], ARGV[1])
local packed = redis.call('HGET', KEYS[1], ARGV[1])
if not due or not packed or tonumber(due) > tonumber(ARGV[2]) then
  if not packed then redis.call('ZREM', KEYS[2], ARGV[1]) end
  return nil
end
local group = cjson.decode(packed).group
if group ~= '' and redis.call('HGET', KEYS[3], group) == ARGV[1] then
  redis.call('HDEL', KEYS[3], group)
  redis.call('HSET', KEYS[4], group, ARGV[2])
end
redis.call('ZADD', KEYS[2], string.format('%.0f', tonumber(ARGV[2]) + tonumber(ARGV[3])), ARGV[1])
return packed
