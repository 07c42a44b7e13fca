-- uses _common
-- Give credits to an org, at most once for an idempotency key, for ever.
--
-- KEYS    the eight of _common, 9 grants (hash key -> record)
-- ARGV    1 idempotency key, 2 record (JSON), 3 digest of the body, 4 amount_micro (> 0), 5 source,
--         6 starts_us, 7 expires_us or '', 8 journal entry (JSON), 9 largest amount, 10 now_us or '', 11 org name
-- Returns {'granted'|'replayed'|'conflict'|'too_large', record}
--
-- An overdraft is paid from the grant at once if it is in force; else when it comes into force.
local known = redis.call('HGET', KEYS[9], ARGV[1])
if known then
  if cjson.decode(known).digest == ARGV[3] then
    return {'replayed', known}
  end
  return {'conflict', known}
end
local amount = tonumber(ARGV[4])
local now = clock(ARGV[10])
if micro(KEYS[1], 'granted') + amount > tonumber(ARGV[9]) then
  return {'too_large', ''}
end
redis.call('HSET', KEYS[9], ARGV[1], ARGV[2])
redis.call('HSET', KEYS[1], 'name', ARGV[11], 'known', '1')
redis.call('HINCRBY', KEYS[1], 'granted', ARGV[4])
redis.call('HINCRBY', KEYS[1], 'granted:' .. ARGV[5], ARGV[4])
redis.call('HSET', KEYS[2], ARGV[1], ARGV[6] .. '|' .. ARGV[7] .. '|' .. ARGV[4])
if ARGV[7] ~= '' then
  redis.call('HINCRBY', KEYS[1], 'budget_rev', 1)  -- charges are cut where it begins and ends
end
redis.call('XADD', KEYS[8], '*', 'entry', ARGV[8])
pay_debt(now)
return {'granted', ARGV[2]}
