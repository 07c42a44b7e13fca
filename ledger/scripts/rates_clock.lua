-- Announce that workloads of a cluster are about to be charged up to an instant: from here on its rates before
-- that instant never change.
--
-- KEYS    1 rate history of the cluster
-- ARGV    1 instant (us)
-- Returns the version of the rate history, '0' where there is none yet.
local clock = tonumber(redis.call('HGET', KEYS[1], 'clock_us') or '0')
if tonumber(ARGV[1]) > clock then
  redis.call('HSET', KEYS[1], 'clock_us', ARGV[1])
end
return redis.call('HGET', KEYS[1], 'version') or '0'
