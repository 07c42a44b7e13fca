-- Last step of a transfer: it is no longer under way.
--
-- KEYS    1 transfers, 2 transfers under way
-- ARGV    1 idempotency key, 2 record (JSON) as it ends
-- Returns the record
redis.call('HSET', KEYS[1], ARGV[1], ARGV[2])
redis.call('HDEL', KEYS[2], ARGV[1])
return ARGV[2]
