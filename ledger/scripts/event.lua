-- Have an event sent, once for its id, however often it is told.
--
-- KEYS    1 events stream, 2 ids seen (sorted set, by the instant)
-- ARGV    1 id, 2 event (JSON), 3 now_ms, 4 how many events are kept, 5 how long (ms) an id is remembered
-- Returns 1; 0 where it was there already.
redis.call('ZREMRANGEBYSCORE', KEYS[2], '-inf', tonumber(ARGV[3]) - tonumber(ARGV[5]))
if redis.call('ZADD', KEYS[2], 'NX', ARGV[3], ARGV[1]) == 0 then
  return 0
end
redis.call('XADD', KEYS[1], 'MAXLEN', '~', ARGV[4], '*', 'event', ARGV[2])
return 1
