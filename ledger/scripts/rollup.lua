-- Put a roll-up into force that was made beside, unless its hours were charged since the work began.
--
-- KEYS    1 rollups, 2 hash with the sums (absent: nothing was used), 3 hash of the roll-up
-- ARGV    1 name of the roll-up, 2 name of the work, set in rollups before the hours were read
-- Returns 'ok'; 'late' where a charge took the mark away, or another began the same work.
local present = redis.call('HGET', KEYS[1], ARGV[1])
if present == 'ok' and redis.call('EXISTS', KEYS[2]) == 0 then
  return 'ok'  -- the answer to this very request was lost on its way
end
if present ~= ARGV[2] then
  redis.call('DEL', KEYS[2])
  return 'late'
end
redis.call('DEL', KEYS[3])
if redis.call('EXISTS', KEYS[2]) == 1 then
  redis.call('RENAME', KEYS[2], KEYS[3])
  redis.call('PERSIST', KEYS[3])
end
redis.call('HSET', KEYS[1], ARGV[1], 'ok')
return 'ok'
