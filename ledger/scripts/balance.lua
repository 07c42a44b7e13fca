-- uses _common
-- What an org has: all figures of one instant.
--
-- KEYS    the eight of _common
-- ARGV    1 now_us or ''
-- Returns {now_us, granted, expired, spent, held in admission holds, to be held for running work, holds,
--          then field, value, ... of the org hash}
-- Side effect: ends holds whose time is over.
local now = clock(ARGV[1])
expire_holds(now)
local granted, expired, spent = funds(now)
local answer = {text(now), text(granted), text(expired), text(spent),
  redis.call('HGET', KEYS[6], '') or '0', redis.call('HGET', KEYS[7], '') or '0', tostring(redis.call('HLEN', KEYS[3]))}
for _, item in ipairs(redis.call('HGETALL', KEYS[1])) do
  answer[#answer + 1] = item
end
return answer
