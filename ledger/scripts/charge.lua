-- uses _common
-- Commit a round's charges of one org from one source: amounts, run records, marks, holds, all or nothing.
--
-- KEYS    the eight of _common, 9 rows, 10 spent, 11 hours, 12 runs, 13 ended, 14 grants, 15 budgetspent,
--         16 running of this source, 17 rollups, 18 metered, 19 settled, 20... hour buckets
-- ARGV    1 plan (msgpack map; every amount is a string of an integer):
--           expected    commit token the plan was computed from ('' for an org without one)
--           token       this commit's own token
--           budget_rev  revision of what cuts time (budgets, ends of grants) the plan was computed from
--           org, source
--           taken_us    instant up to which the source's runs that go on are charged now; '' leaves it
--           hours       full hours (seconds) of the buckets, in the order of KEYS 20...
--           rollups     fields of rollups: days and months of these hours, whose sums are no longer what they were
--           rows        list of {row number, row as JSON}: new rows
--           charges     list of {bucket number, row number, micro, us, refunded micro, refunded us}
--           slots       list of {since_us, until_us, micro, class of work or nothing}, ascending: what was used when
--           budgets     list of {field of budgetspent, micro (may be negative: corrected)}
--           runs, ended flat lists field, record, ...
--           gone, revived  fields to drop from runs, from ended
--           metered, unmetered  cluster US workload id: charged from now on, not any more
--           settled     list of {hold id or '', workload or ''}: jobs that are metered from now on
--           running     list of {tier, change, whole}: what running work is to have set aside
--           burn        JSON for the org hash, '' leaves it
--           corrections list of {grant key, record, micro, journal entry}
--         2 now_us or ''
-- Returns {'ok'|'replayed', token}; {'conflict'|'stale', present token}: read again, compute again;
--         {'too_large', ''}: a sum would leave what can be counted, and nothing was written.
local MICRO_MAX = 9007199254740991
local plan = cmsgpack.unpack(ARGV[1])
local present = redis.call('HMGET', KEYS[1], 'commit', 'budget_rev')
if present[1] == plan.token then
  return {'replayed', plan.token}
end
if (present[1] or '') ~= plan.expected then
  return {'conflict', present[1] or ''}
end
if (present[2] or '0') ~= plan.budget_rev then
  return {'stale', present[1] or ''}
end
local now = clock(ARGV[2])

-- Before anything is written: a command that fails halfway through a script takes nothing back.
local function too_large()
  local spent, granted = micro(KEYS[1], 'spent'), micro(KEYS[1], 'granted')
  for _, slot in ipairs(plan.slots) do spent = spent + tonumber(slot[3]) end
  for _, correction in ipairs(plan.corrections) do granted = granted + tonumber(correction[3]) end
  for _, tier in ipairs(plan.running) do
    if math.abs(tonumber(tier[2])) > MICRO_MAX or micro(KEYS[7], tier[1]) + tonumber(tier[2]) > MICRO_MAX then
      return true
    end
  end
  return spent > MICRO_MAX or granted > MICRO_MAX
end
if too_large() then
  return {'too_large', ''}
end

for _, row in ipairs(plan.rows) do
  redis.call('HSET', KEYS[9], row[1], row[2])
end

local function add(key, row, micro_, us, refunded, refunded_us)
  if micro_ ~= '0' then redis.call('HINCRBY', key, row, micro_) end
  if us ~= '0' then redis.call('HINCRBY', key, row .. 't', us) end
  if refunded ~= '0' then redis.call('HINCRBY', key, row .. 'r', refunded) end
  if refunded_us ~= '0' then redis.call('HINCRBY', key, row .. 'u', refunded_us) end
end
for _, charge in ipairs(plan.charges) do
  add(KEYS[19 + tonumber(charge[1])], charge[2], charge[3], charge[4], charge[5], charge[6])
  add(KEYS[10], charge[2], charge[3], charge[4], charge[5], charge[6])
end
for _, hour in ipairs(plan.hours) do
  redis.call('ZADD', KEYS[11], hour, hour)
end
for _, rollup in ipairs(plan.rollups) do redis.call('HDEL', KEYS[17], rollup) end

-- Grants pay for what was used while they were in force, the soonest to expire first. What no grant covers
-- is an overdraft, paid by the next grant that comes into force. Slots end where grants begin and end, so it does
-- not matter how many of them there are.
if #plan.slots > 0 then
  local grants, debts, number = grants_in_order(), read_debts(), 1
  while number <= #plan.slots do
    local since, until_ = plan.slots[number][1], plan.slots[number][2]
    local dues = {}
    repeat  -- the classes of work of one slot
      local slot = plan.slots[number]
      redis.call('HINCRBY', KEYS[1], 'spent', slot[3])
      dues[#dues + 1] = {class = slot[4] or '', due = tonumber(slot[3])}
      number = number + 1
    until number > #plan.slots or plan.slots[number][1] ~= since or plan.slots[number][2] ~= until_
    since, until_ = tonumber(since), tonumber(until_)
    if #dues > 1 then narrowest_first(grants, dues) end
    for _, due in ipairs(dues) do
      due.due = pay(grants, due.due, since, until_, due.class)
    end
    pay_debts(grants, debts, until_)
    for _, due in ipairs(dues) do
      if due.due > 0 then add_debt(debts, due.class, due.due, until_) end
    end
  end
  keep_grants(grants)
  keep_debts(debts)
end

for _, correction in ipairs(plan.corrections) do
  redis.call('HSET', KEYS[14], correction[1], correction[2])
  redis.call('HINCRBY', KEYS[1], 'granted', correction[3])
  redis.call('HINCRBY', KEYS[1], 'granted:refund', correction[3])
  redis.call('HINCRBY', KEYS[1], 'refunded', correction[3])
  redis.call('HSET', KEYS[2], correction[1], '0||' .. correction[3])
  redis.call('XADD', KEYS[8], '*', 'entry', correction[4])
end
pay_debt(now)

for _, budget in ipairs(plan.budgets) do
  redis.call('HINCRBY', KEYS[15], budget[1], budget[2])
end
for i = 1, #plan.unmetered do redis.call('SREM', KEYS[18], plan.unmetered[i]) end
for i = 1, #plan.metered do redis.call('SADD', KEYS[18], plan.metered[i]) end
for i = 1, #plan.gone do redis.call('HDEL', KEYS[12], plan.gone[i]) end
for i = 1, #plan.revived do redis.call('HDEL', KEYS[13], plan.revived[i]) end
for i = 1, #plan.runs, 2 do redis.call('HSET', KEYS[12], plan.runs[i], plan.runs[i + 1]) end
for i = 1, #plan.ended, 2 do redis.call('HSET', KEYS[13], plan.ended[i], plan.ended[i + 1]) end

local forgotten = text(math.floor(now / 1000) + 3600000)
for _, settled in ipairs(plan.settled) do
  local is_held = settled[1] ~= '' and redis.call('HEXISTS', KEYS[3], settled[1]) == 1
  -- A task of an array that was changed alone has a hold of its own beside its part of the array's.
  local own = settled[2] ~= '' and redis.call('HGET', KEYS[5], settled[2])
  if is_held then drop_hold(settled[1], 1, settled[2]) end
  if own and own ~= settled[1] then drop_hold(own, 1, settled[2]) end
  -- Who let it in without the ledger may be about to make its hold: admit.lua looks here then.
  if settled[1] ~= '' and redis.call('HEXISTS', KEYS[3], settled[1]) == 0 then
    redis.call('ZADD', KEYS[19], forgotten, settled[1])
    if not is_held and redis.call('ZADD', KEYS[19], 'NX', forgotten, settled[1] .. '\31' .. settled[2]) == 1 then
      redis.call('ZADD', KEYS[19], 'NX', text(SETTLED_NONE), settled[1] .. '\31')
      redis.call('ZINCRBY', KEYS[19], '1', settled[1] .. '\31')
    end
  end
end
local old = redis.call('ZRANGEBYSCORE', KEYS[19], '-inf', text(math.floor(now / 1000)), 'LIMIT', 0, 5000)
if #old > 0 then
  redis.call('ZREM', KEYS[19], unpack(old))
  for n, id in ipairs(old) do old[n] = id .. '\31' end
  redis.call('ZREM', KEYS[19], unpack(old))
end
expire_holds(now)
for _, tier in ipairs(plan.running) do
  if redis.call('HINCRBY', KEYS[7], tier[1], tier[2]) == 0 then
    redis.call('HDEL', KEYS[7], tier[1])
  elseif string.sub(tier[1], 1, 2) == 'c\31' then
    note_class(tier[1])
  end
  if tier[3] == '0' then
    redis.call('HDEL', KEYS[16], tier[1])
  else
    redis.call('HSET', KEYS[16], tier[1], tier[3])
  end
end
if plan.burn ~= '' then
  redis.call('HSET', KEYS[1], 'burn:' .. plan.source, plan.burn)
end
if plan.taken_us ~= '' then
  redis.call('HSET', KEYS[1], 'mark:' .. plan.source, plan.taken_us)
end
redis.call('HSET', KEYS[1], 'name', plan.org, 'commit', plan.token)
return {'ok', plan.token}
