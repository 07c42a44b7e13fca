-- Say what an idempotency key of a transfer is for: once, for ever.
--
-- KEYS    1 transfers of all orgs
-- ARGV    1 field of the key, 2 what it is for (JSON)
-- Returns what it is for: this, or what came first
redis.call('HSETNX', KEYS[1], ARGV[1], ARGV[2])
return redis.call('HGET', KEYS[1], ARGV[1])
