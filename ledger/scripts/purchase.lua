-- uses _common
-- Commit what a payment's news mean: order, payment, credits and journal, all or nothing.
--
-- KEYS    the eight of _common, 9 grants, 10 purchases, 11 payments, 12 withdrawals, 13 top_up, 14 corrected
-- ARGV    1 plan (msgpack map; every amount is a string of an integer of micro-credits):
--           org
--           order     {id, JSON the plan was computed from or '', new JSON}
--           payment   the same, id '' where it is about the order only; amounts in it are strings
--           grant     {key, record (JSON), amount, starts_us}: credits paid for; key '' for none
--           withdraw  {id, amount, entry (JSON), grant key, 'overdraft' or 'forgive', what the grant gave}: taken back;
--                     id '' for none
--           restore   {id, amount, entry (JSON)}: given again; id '' for none
--           top_up    {order, outcome, month, amount, decline, forget, entry (JSON)} of an order of auto top-up; order ''
--                     for none. outcome: 'paid', 'failed' or 'refused' (paid, but not what was asked for), which end
--                     the order in flight, or 'late' (paid after it failed). decline: it counts as one, and this many
--                     are a pause; '0' for none. forget: '1' where the card is gone
--           entries   list of journal entries (JSON)
--           limit     largest amount
--         2 now_us or ''
-- Returns {'ok', micro-credits taken back}; {'conflict', ''}: order or payment moved on, compute again;
--   {'too_large', ''}: the org would hold more than can be counted. A repeated call finds its own work: 'conflict'.
--
-- What is taken back comes from the payment's own grant, then from those in force, the soonest to expire first.
-- The rest is an overdraft that the next grant pays, or is forgiven. What corrections of the payment's grant took back
-- already is not taken again.
local plan = cmsgpack.unpack(ARGV[1])
local now = clock(ARGV[2])
if (redis.call('HGET', KEYS[10], plan.order[1]) or '') ~= plan.order[2] then
  return {'conflict', ''}
end
if plan.payment[1] ~= '' and (redis.call('HGET', KEYS[11], plan.payment[1]) or '') ~= plan.payment[2] then
  return {'conflict', ''}
end
if plan.grant[1] ~= '' and micro(KEYS[1], 'granted') + tonumber(plan.grant[3]) > tonumber(plan.limit) then
  return {'too_large', ''}
end

local function keep(id, entry, amount, forgiven)
  entry.credits = credits(amount)
  entry.forgiven = credits(forgiven)
  local packed = cjson.encode(entry)
  redis.call('HSET', KEYS[12], id, packed)
  redis.call('XADD', KEYS[8], '*', 'entry', packed)
end

for _, entry in ipairs(plan.entries) do
  redis.call('XADD', KEYS[8], '*', 'entry', entry)
end

if plan.grant[1] ~= '' then
  if redis.call('HEXISTS', KEYS[9], plan.grant[1]) == 1 then
    return redis.error_reply('the grant of a payment that is not paid is there: ' .. plan.grant[1])
  end
  redis.call('HSET', KEYS[9], plan.grant[1], plan.grant[2])
  redis.call('HSET', KEYS[1], 'name', plan.org, 'known', '1')
  redis.call('HINCRBY', KEYS[1], 'granted', plan.grant[3])
  redis.call('HINCRBY', KEYS[1], 'granted:purchase', plan.grant[3])
  redis.call('HSET', KEYS[2], plan.grant[1], plan.grant[4] .. '||' .. plan.grant[3])
  pay_debt(now)
end

local taken = 0
if plan.withdraw[1] ~= '' then
  local asked, entry = tonumber(plan.withdraw[2]), cjson.decode(plan.withdraw[3])
  local left = tonumber(plan.withdraw[6]) + micro(KEYS[14], plan.withdraw[4])
    - tonumber(cjson.decode(plan.payment[3]).taken)
  local corrected = math.max(0, asked - math.max(0, left))
  asked = asked - corrected
  if corrected > 0 then
    entry.corrected = credits(corrected)
  end
  local due = withdraw(asked, plan.withdraw[4], now)
  taken = asked
  if plan.withdraw[5] == 'forgive' then
    taken = asked - due
  else
    owe(due, now)
  end
  redis.call('HINCRBY', KEYS[1], 'granted', text(0 - taken))  -- -0 would be the text '-0', no integer
  redis.call('HINCRBY', KEYS[1], 'withdrawn', text(taken))
  keep(plan.withdraw[1], entry, taken, asked - taken)
end

if plan.restore[1] ~= '' then
  redis.call('HINCRBY', KEYS[1], 'granted', plan.restore[2])
  redis.call('HINCRBY', KEYS[1], 'restored', plan.restore[2])
  redis.call('HSET', KEYS[2], plan.restore[1], '0||' .. plan.restore[2])
  keep(plan.restore[1], cjson.decode(plan.restore[3]), tonumber(plan.restore[2]), 0)
  pay_debt(now)
end

local top_up = {order = plan.top_up[1], outcome = plan.top_up[2], month = 'month:' .. plan.top_up[3]}
if top_up.outcome == 'late' then
  redis.call('HINCRBY', KEYS[13], top_up.month, plan.top_up[4])
elseif top_up.order ~= '' and redis.call('HGET', KEYS[13], 'order') == top_up.order then
  local entry = cjson.decode(plan.top_up[7])
  local terms = redis.call('HGET', KEYS[13], 'terms')
  local decline = tonumber(plan.top_up[5])
  redis.call('HDEL', KEYS[13], 'order')
  if terms then
    redis.call('HSET', KEYS[13], 'cool_until', text(now + tonumber(cjson.decode(terms).cool_down_us)))
  end
  if top_up.outcome == 'paid' then
    redis.call('HDEL', KEYS[13], 'declines')
  elseif top_up.outcome == 'failed' then
    redis.call('HINCRBY', KEYS[13], top_up.month, '-' .. plan.top_up[4])
  end
  entry.paused = top_up.outcome == 'refused'
    or decline > 0 and redis.call('HINCRBY', KEYS[13], 'declines', 1) >= decline
  if entry.paused then
    redis.call('HSET', KEYS[13], 'paused', entry.reason)
  end
  if plan.top_up[6] == '1' then
    redis.call('HDEL', KEYS[13], 'card')
    redis.call('HSET', KEYS[13], 'removed_us', text(now))
  end
  redis.call('XADD', KEYS[8], '*', 'entry', cjson.encode(entry))
end

redis.call('HSET', KEYS[10], plan.order[1], plan.order[3])
if plan.payment[1] ~= '' then
  local payment = cjson.decode(plan.payment[3])
  payment.taken = text(tonumber(payment.taken) + taken - tonumber(plan.restore[2]))
  redis.call('HSET', KEYS[11], plan.payment[1], cjson.encode(payment))
end
return {'ok', text(taken)}
