-- uses _common
-- What an org has: all figures of one instant.
--
-- KEYS    the eight of _common
-- ARGV    1 now_us or ''
-- Returns {now_us, granted, expired, spent, held in admission holds, to be held for running work, holds,
--          then field, value, ... of the org hash, and beside these: owed (what no grant paid), and where there is such
--          restricted (JSON: what is left by scope) and aside (JSON: what is to be held for running work, by class)};
--          {'more'}: ask again, there were too many holds to end at once
-- Side effect: ends holds whose time is over, and notes the most that ever was expired.
local now = clock(ARGV[1])
if expire_holds(now) then
  return {'more'}
end
local granted, expired, spent, _, lefts, debts = funds(now)
if expired > micro(KEYS[1], 'expired_most') then
  redis.call('HSET', KEYS[1], 'expired_most', text(expired))
end
local answer = {text(now), text(granted), text(expired), text(spent),
  redis.call('HGET', KEYS[6], '') or '0', redis.call('HGET', KEYS[7], '') or '0', tostring(redis.call('HLEN', KEYS[3]))}
for _, item in ipairs(redis.call('HGETALL', KEYS[1])) do
  answer[#answer + 1] = item
end
local owed = 0
for _, debt in ipairs(debts) do owed = owed + debt.due end
if owed > 0 then
  answer[#answer + 1] = 'owed'
  answer[#answer + 1] = text(owed)
end
if lefts then
  for scope, left in pairs(lefts) do lefts[scope] = text(left) end
  answer[#answer + 1] = 'restricted'
  answer[#answer + 1] = cjson.encode(lefts)
  local aside = {}
  for _, class in ipairs(known_classes()) do aside[class] = redis.call('HGET', KEYS[7], class) or nil end
  answer[#answer + 1] = 'aside'
  answer[#answer + 1] = cjson.encode(aside)
end
return answer
