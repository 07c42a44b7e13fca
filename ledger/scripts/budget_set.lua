-- Set a budget; what its current period has spent so far is given, computed from the org as of a commit.
--
-- KEYS    1 org, 2 budgets, 3 budgetspent, 4 journal
-- ARGV    1 commit token the sum was computed from, 2 revision of the budgets it was computed from,
--         3 budget id, 4 record (JSON), 5 field of budgetspent of the current period, 6 spent in it so far (micro),
--         7 journal entry (JSON), 8 what the budgets of its project (or user in it) must be: SHA-1 of their records,
--         '*' for any, but one, '' for any or none, 9... ids that these can have
-- Returns {'set'|'same', revision, the SHA-1 after it}; {'conflict'}: the org moved on meanwhile, compute again;
--         {'changed'}: these budgets are others
local present = redis.call('HMGET', KEYS[1], 'commit', 'budget_rev')

local function records()
  local all = ''
  for i = 9, #ARGV do
    all = all .. (redis.call('HGET', KEYS[2], ARGV[i]) or '') .. '\n'
  end
  return all
end

local before = records()
if redis.call('HGET', KEYS[2], ARGV[3]) == ARGV[4] then
  return {'same', present[2] or '0', redis.sha1hex(before)}
end
if ARGV[8] == '*' and not string.find(before, '[^\n]') then
  return {'changed'}
end
if ARGV[8] ~= '' and ARGV[8] ~= '*' and redis.sha1hex(before) ~= ARGV[8] then
  return {'changed'}
end
if (present[1] or '') ~= ARGV[1] or (present[2] or '0') ~= ARGV[2] then
  return {'conflict'}
end
redis.call('HSET', KEYS[2], ARGV[3], ARGV[4])
redis.call('HSET', KEYS[3], ARGV[5], ARGV[6])
redis.call('XADD', KEYS[4], '*', 'entry', ARGV[7])
return {'set', tostring(redis.call('HINCRBY', KEYS[1], 'budget_rev', 1)), redis.sha1hex(records())}
