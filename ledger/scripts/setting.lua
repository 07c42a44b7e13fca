-- Set what an org said about something, with its journal entry, in one step.
--
-- KEYS    1 hash, 2 journal
-- ARGV    1 field, 2 value ('' removes it), 3 journal entry (JSON), 4 revision that it must be of, '' or '*' for any,
--         5 revision of what this call makes of it
-- Returns 'set'; 'same' where it was so already, and nothing is written; 'changed' where the revision is another one
local rev = ARGV[1] .. '_rev'
local before = redis.call('HMGET', KEYS[1], ARGV[1], rev)
if before[2] == ARGV[5] then
  return 'set'  -- the answer to this very request was lost on its way
end
if ARGV[4] ~= '' and ARGV[4] ~= '*' and ARGV[4] ~= (before[2] or '0') then
  return 'changed'
end
if (before[1] or '') == ARGV[2] then
  return 'same'
end
if ARGV[2] == '' then
  redis.call('HDEL', KEYS[1], ARGV[1])
else
  redis.call('HSET', KEYS[1], ARGV[1], ARGV[2])
end
redis.call('HSET', KEYS[1], rev, ARGV[5])
redis.call('XADD', KEYS[2], '*', 'entry', ARGV[3])
return 'set'
