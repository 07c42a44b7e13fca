-- Remove budgets of a project (or of a user in it), and the counters of their periods.
--
-- KEYS    1 org, 2 budgets, 3 budgetspent, 4 journal
-- ARGV    1 what these budgets must be (as in budget_set), 2 how many ids they can have, 3... these ids,
--         then for each to remove: budget id, what every field of its counters starts with, journal entry (JSON)
-- Returns {'removed'|'absent', revision, ids removed...}; {'changed', ''}: these budgets are others
local first = 3 + tonumber(ARGV[2])
local records, there = '', false
for i = 3, first - 1 do
  records = records .. (redis.call('HGET', KEYS[2], ARGV[i]) or '') .. '\n'
end
for i = first, #ARGV, 3 do
  there = there or redis.call('HEXISTS', KEYS[2], ARGV[i]) == 1
end
if not there then
  return {'absent', redis.call('HGET', KEYS[1], 'budget_rev') or '0'}
end
if ARGV[1] ~= '' and ARGV[1] ~= '*' and redis.sha1hex(records) ~= ARGV[1] then
  return {'changed', ''}
end
local removed = {'removed', ''}
for i = first, #ARGV, 3 do
  if redis.call('HDEL', KEYS[2], ARGV[i]) == 1 then
    for _, field in ipairs(redis.call('HKEYS', KEYS[3])) do
      if string.sub(field, 1, #ARGV[i + 1]) == ARGV[i + 1] then
        redis.call('HDEL', KEYS[3], field)
      end
    end
    redis.call('XADD', KEYS[4], '*', 'entry', ARGV[i + 2])
    removed[#removed + 1] = ARGV[i]
  end
end
removed[2] = tostring(redis.call('HINCRBY', KEYS[1], 'budget_rev', 1))
return removed
