-- Remove a budget and the counters of its periods.
--
-- KEYS    1 org, 2 budgets, 3 budgetspent, 4 journal
-- ARGV    1 budget id, 2 what every field of its counters starts with, 3 journal entry (JSON)
-- Returns {'removed'|'absent', revision}
if redis.call('HDEL', KEYS[2], ARGV[1]) == 0 then
  return {'absent', redis.call('HGET', KEYS[1], 'budget_rev') or '0'}
end
for _, field in ipairs(redis.call('HKEYS', KEYS[3])) do
  if string.sub(field, 1, #ARGV[2]) == ARGV[2] then
    redis.call('HDEL', KEYS[3], field)
  end
end
redis.call('XADD', KEYS[4], '*', 'entry', ARGV[3])
return {'removed', tostring(redis.call('HINCRBY', KEYS[1], 'budget_rev', 1))}
