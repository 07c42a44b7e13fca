-- uses _common
-- Second step of a transfer: gives an org what was taken of another, at most once. Also gives back to the first org what
-- the other cannot take.
--
-- KEYS    the eight of _common, 9 grants, 10 received
-- ARGV    1 field of received, 2 list of {key, record (JSON), amount_micro, starts_us, expires_us or ''} (msgpack),
--         3 journal entry (JSON), 4 largest amount, 5 org name, 6 now_us or ''
-- Returns 'given'; 'refused': the org would have held more than can be counted. Either is so for ever.
local known = redis.call('HGET', KEYS[10], ARGV[1])
if known then
  return known
end
local parts, sum = cmsgpack.unpack(ARGV[2]), 0
for _, part in ipairs(parts) do
  sum = sum + tonumber(part[3])
end
if micro(KEYS[1], 'granted') + sum > tonumber(ARGV[4]) then
  redis.call('HSET', KEYS[10], ARGV[1], 'refused')
  return 'refused'
end
redis.call('HSET', KEYS[10], ARGV[1], 'given')
redis.call('HSET', KEYS[1], 'name', ARGV[5], 'known', '1')
redis.call('HINCRBY', KEYS[1], 'granted', text(sum))
redis.call('HINCRBY', KEYS[1], 'granted:transfer', text(sum))
local expires = false
for _, part in ipairs(parts) do
  redis.call('HSET', KEYS[9], part[1], part[2])
  redis.call('HSET', KEYS[2], part[1], part[4] .. '|' .. part[5] .. '|' .. part[3])
  expires = expires or part[5] ~= ''
end
if expires then
  redis.call('HINCRBY', KEYS[1], 'budget_rev', 1)  -- charges are cut where it begins and ends
end
redis.call('XADD', KEYS[8], '*', 'entry', ARGV[3])
pay_debt(clock(ARGV[6]))
return 'given'
