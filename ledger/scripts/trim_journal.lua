-- Give up the oldest entries of a journal: what they granted goes into a sum.
--
-- KEYS    1 org, 2 journal
-- ARGV    1 id of the first entry there is, 2 id of the first that stays (may be one that does not exist),
--         3 micro-credits that the entries before it granted
-- Returns how many entries were given up; 'conflict': the first entry is another one, look again.
local first = redis.call('XRANGE', KEYS[2], '-', '+', 'COUNT', 1)[1]
if not first or first[1] ~= ARGV[1] then
  return 'conflict'
end
local trimmed = redis.call('XTRIM', KEYS[2], 'MINID', ARGV[2])
if ARGV[3] ~= '0' then
  redis.call('HINCRBY', KEYS[1], 'journaled', ARGV[3])
end
return tostring(trimmed)
