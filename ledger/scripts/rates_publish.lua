-- Replace a cluster's rate history by one that differs only from a given instant on.
--
-- KEYS    1 rate history of the cluster
-- ARGV    1 version the history was made from ('0': none), 2 new version, 3 history (JSON),
--         4 instant (us) from which it differs
-- Returns 'ok'; 'conflict' where another history came first or the instant is charged already.
local present = redis.call('HMGET', KEYS[1], 'version', 'clock_us')
if (present[1] or '0') ~= ARGV[1] or tonumber(present[2] or '0') > tonumber(ARGV[4]) then
  return 'conflict'
end
redis.call('HSET', KEYS[1], 'version', ARGV[2], 'plan', ARGV[3])
return 'ok'
