-- uses _common
-- Correct what an org was given or charged: give credits, or take them back. At most once for a key, for ever.
--
-- KEYS    the eight of _common, 9 grants, 10 withdrawals, 11 corrections, 12 corrected, 13 payments
-- ARGV    1 plan (msgpack map; every amount is a string of an integer of micro-credits):
--           key, digest  of this correction and its body
--           amount       > 0
--           gives        '1': credits are given; '': they are taken back
--           record       JSON as it is kept
--           entry        JSON for the journal
--           corrects     key of the grant that is corrected, or ''; granted: its amount; payment: the id it was paid by
--           grant        {key, record (JSON), starts_us, expires_us or '', scope or ''}: what is given
--           org, limit   its name; the largest amount
--         2 now_us or ''
-- Returns {'done'|'replayed'|'conflict', record}; {'below', what is left of the grant after all corrections of it};
--   {'too_large', ''}: the org would hold more than can be counted
--
-- What is taken back comes from the corrected grant, then from those in force, the soonest to expire first. The rest is
-- an overdraft, which the next grant pays.
local plan = cmsgpack.unpack(ARGV[1])
local now = clock(ARGV[2])
local known = redis.call('HGET', KEYS[11], plan.key)
if known then
  return {cjson.decode(known).digest == plan.digest and 'replayed' or 'conflict', known}
end
local amount = tonumber(plan.amount)
local record, entry = cjson.decode(plan.record), cjson.decode(plan.entry)
if plan.gives == '1' then
  if micro(KEYS[1], 'granted') + amount > tonumber(plan.limit) then
    return {'too_large', ''}
  end
elseif plan.corrects ~= '' then
  local left = tonumber(plan.granted) + micro(KEYS[12], plan.corrects)
  local payment = plan.payment ~= '' and redis.call('HGET', KEYS[13], plan.payment)
  if payment then
    left = left - tonumber(cjson.decode(payment).taken)
  end
  if amount > left then
    return {'below', text(math.max(0, left))}
  end
end

local apart, apart_at = 0, 0
if plan.gives == '1' then
  redis.call('HSET', KEYS[9], plan.grant[1], plan.grant[2])
  redis.call('HINCRBY', KEYS[1], 'granted', plan.amount)
  redis.call('HINCRBY', KEYS[1], 'granted:refund', plan.amount)
  redis.call('HSET', KEYS[2], plan.grant[1], plan.grant[3] .. '|' .. plan.grant[4] .. '|' .. plan.amount
    .. (plan.grant[5] ~= '' and '|' .. plan.grant[5] or ''))
  if plan.grant[4] ~= '' then
    redis.call('HINCRBY', KEYS[1], 'budget_rev', 1)  -- charges are cut where it begins and ends
  end
  pay_debt(now)
else
  local due
  due, apart, apart_at = withdraw(amount, plan.corrects, now)
  owe(due, now)
  redis.call('HINCRBY', KEYS[1], 'granted', text(-amount))
  redis.call('HINCRBY', KEYS[1], 'withdrawn', plan.amount)
  record.overdraft, entry.overdraft = credits(due), credits(due)
end
if plan.corrects ~= '' then
  redis.call('HINCRBY', KEYS[12], plan.corrects, plan.gives == '1' and plan.amount or text(-amount))
end
redis.call('XADD', KEYS[8], '*', 'entry', cjson.encode(entry))
if plan.gives ~= '1' then
  if apart > 0 then
    entry.apart, entry.apart_us = credits(apart), text(apart_at)  -- for statements
  end
  redis.call('HSET', KEYS[10], 'correction:' .. plan.key, cjson.encode(entry))
end
local packed = cjson.encode(record)
redis.call('HSET', KEYS[11], plan.key, packed)
return {'done', packed}
