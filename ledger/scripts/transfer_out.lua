-- uses _common
-- First step of a transfer: takes credits of one org, and notes in the same step that they are on their way.
--
-- KEYS    the eight of _common, 9 withdrawals, 10 transfers, 11 transfers under way
-- ARGV    1 idempotency key, 2 amount_micro (> 0), 3 record (JSON), 4 journal entry (JSON), 5 now_us or ''
-- Returns {'taken'|'known', record}; {'insufficient', micro-credits that are available};
--         {'more'}: ask again, there were too many holds to end at once
--
-- Only credits move that are in force, that any work may use, and that neither holds nor running work need. The soonest
-- to expire go first. The record's `parts` say how much of them expires when.
local known = redis.call('HGET', KEYS[10], ARGV[1])
if known then
  return {'known', known}
end
local amount = tonumber(ARGV[2])
local now = clock(ARGV[5])
if expire_holds(now) then
  return {'more'}
end
local _, _, _, free, _, debts = funds(now)
for _, debt in ipairs(debts) do
  free = free - debt.due
end
free = free - micro(KEYS[6], '') - micro(KEYS[7], '')
if amount > free then
  return {'insufficient', text(math.max(0, free))}
end

local grants, before = grants_in_order(), {}
for _, grant in ipairs(grants) do
  before[grant.id] = grant.remaining
end
pay(grants, amount, now, now + 1)
local parts = {}
for _, grant in ipairs(grants) do
  local taken = before[grant.id] - grant.remaining
  if taken > 0 then
    local expires = grant.expires and text(grant.expires) or ''
    local last = parts[#parts]
    if last and last.expires == expires then
      last.micro = text(tonumber(last.micro) + taken)
    else
      parts[#parts + 1] = {expires = expires, micro = text(taken)}
    end
  end
end
keep_grants(grants)
redis.call('HINCRBY', KEYS[1], 'granted', text(-amount))
redis.call('HINCRBY', KEYS[1], 'withdrawn', ARGV[2])
redis.call('HSET', KEYS[9], 'transfer:' .. ARGV[1], ARGV[4])
redis.call('XADD', KEYS[8], '*', 'entry', ARGV[4])
local record = cjson.decode(ARGV[3])
record.parts = parts
record.at_us = text(now)
local packed = cjson.encode(record)
redis.call('HSET', KEYS[10], ARGV[1], packed)
redis.call('HSET', KEYS[11], ARGV[1], '1')
return {'taken', packed}
