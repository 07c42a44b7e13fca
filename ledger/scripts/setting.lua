-- Set what an org said about something, with its journal entry, in one step.
--
-- KEYS    1 hash, 2 journal
-- ARGV    1 field, 2 value ('' removes it), 3 journal entry (JSON)
-- Returns 'set'; 'same' where it was so already, and nothing is written.
if (redis.call('HGET', KEYS[1], ARGV[1]) or '') == ARGV[2] then
  return 'same'
end
if ARGV[2] == '' then
  redis.call('HDEL', KEYS[1], ARGV[1])
else
  redis.call('HSET', KEYS[1], ARGV[1], ARGV[2])
end
redis.call('XADD', KEYS[2], '*', 'entry', ARGV[3])
return 'set'
