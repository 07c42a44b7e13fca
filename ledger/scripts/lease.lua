-- Take, keep or give up a lease, which only one has at a time.
--
-- KEYS    1 lease
-- ARGV    1 who, 2 for how long (ms); '0' gives it up
-- Returns 1 if `who` has it now, else 0.
local holder = redis.call('GET', KEYS[1])
if holder and holder ~= ARGV[1] then
  return 0
end
if ARGV[2] == '0' then
  redis.call('DEL', KEYS[1])
  return 0
end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
return 1
