-- Which jobs of a scheduler were admitted: each time is worth one start anew without credits.
--
-- KEYS    1 admitted (digests of jobs by when), 2 vouchers
-- ARGV    1 'add' or 'take', 2 digest, 3 now_us, 4 instant (us) before which they are forgotten, 5 most vouchers
-- Returns 1 where there was one to take, or it was added; else 0.
for _, digest in ipairs(redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', ARGV[4], 'LIMIT', 0, 100)) do
  redis.call('ZREM', KEYS[1], digest)
  redis.call('HDEL', KEYS[2], digest)
end
if ARGV[1] == 'add' then
  redis.call('ZADD', KEYS[1], ARGV[3], ARGV[2])
  if tonumber(redis.call('HGET', KEYS[2], ARGV[2]) or '0') < tonumber(ARGV[5]) then
    redis.call('HINCRBY', KEYS[2], ARGV[2], 1)
  end
  return 1
end
local since = redis.call('ZSCORE', KEYS[1], ARGV[2])
if not since or tonumber(since) <= tonumber(ARGV[4]) then
  return 0
end
if redis.call('HINCRBY', KEYS[2], ARGV[2], -1) < 0 then
  redis.call('HSET', KEYS[2], ARGV[2], '0')
  return 0
end
return 1
