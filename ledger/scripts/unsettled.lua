-- Holds that a list may have something new to say of; all others of the orgs that wait were seen to do so before.
--
-- KEYS    for each org: holdexp, unlisted of who asks
-- ARGV    1 now_us or ''; which holds by when they end: 2 within (us) so long, 3 from, 4 to so much later than now, or
--         5 as much later than since_us at least; 6... for each org: since_us (of its last look), token it had then ('':
--         it had none that there is anything to be known of)
-- Returns now_us, then for each org {token it has now or '', is all, {hold id, when it ends (ms), ...}}
--   is all: '1' for all holds of the org, as it has another token, the clock went back or since_us is ''; 'many' for
--   no holds at all, as there are too many to be said at once
local left = 5000  -- holds, of all orgs
local now
if ARGV[1] ~= '' then
  now = tonumber(ARGV[1])
else
  local t = redis.call('TIME')
  now = tonumber(t[1]) * 1000000 + tonumber(t[2])
end
local function ms(us)
  return string.format('%.0f', math.floor(us / 1000))
end
local starts, ends_soon = ms(now), ms(now + tonumber(ARGV[2]))
local from, to, later_us = ms(now + tonumber(ARGV[3])), ms(now + tonumber(ARGV[4])), tonumber(ARGV[5])

-- Puts those that end then into `found`; returns whether these are few enough.
local function add(found, name, since, until_)
  local some = redis.call('ZRANGEBYSCORE', name, since, until_, 'WITHSCORES', 'LIMIT', 0, left + 1)
  left = left - #some / 2
  for _, item in ipairs(some) do found[#found + 1] = item end
  return left >= 0
end

local answer = {string.format('%.0f', now)}
for i = 1, #KEYS, 2 do
  local name, since, expected = KEYS[i], ARGV[i + 5], ARGV[i + 6]
  local token, found = expected ~= '' and redis.call('GET', KEYS[i + 1]) or '', {}
  local is_all, are_few = since == '' or token ~= expected or now < tonumber(since), nil
  if is_all then
    are_few = add(found, name, '-inf', '+inf')
  else
    are_few = add(found, name, starts, ends_soon) and add(found, name, from, to)
      and add(found, name, ms(tonumber(since) + later_us), '+inf')
  end
  if not are_few then
    found, left = {}, 0
  end
  answer[#answer + 1] = {token, are_few and (is_all and '1' or '') or 'many', found}
end
return answer
