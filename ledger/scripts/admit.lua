-- uses _common
-- Decide over org, project and user budgets at once and set the credits aside, in one step.
--
-- KEYS    the eight of _common, 9 budgetspent, 10 refusals (stream)
-- ARGV    1 request (msgpack map):
--           hold        id of the hold to make
--           record      JSON of the hold as it is to be stored
--           workload    cluster US workload id, or '' when not known yet
--           amount      micro-credits of one unit (string)
--           units       how many (string)
--           expires_us  when the hold expires (string)
--           tiers       fields of `held` and `running`: org, project, user
--           budgets     list of {field of budgetspent, limit_micro, index into tiers}
--           budget_rev  revision of the budgets the request was made from
--           unknown_org 'deny' or 'allow'
--           dry_run     '1': decide only
--         2 now_us or ''
-- Returns {code, available_micro, index of the budget that ran out or '0', hold id, expires_us, 'new'|'replayed'|'', required}
--   code 'ok', 'no_credits', 'budget_exhausted', 'unknown_org', or 'stale' (budgets changed meanwhile: read again)
-- A repeated request for the same workload and amount answers with the hold it has; another amount replaces it.
local request = cmsgpack.unpack(ARGV[1])
local now = clock(ARGV[2])
local known = redis.call('HMGET', KEYS[1], 'known', 'unlimited', 'budget_rev')
if not known[1] and request.unknown_org ~= 'allow' then
  return {'unknown_org', '0', '0', '', '', '', '0'}
end
if (known[3] or '0') ~= request.budget_rev then
  return {'stale', '0', '0', '', '', '', '0'}
end
expire_holds(now)

local required = tonumber(request.amount) * tonumber(request.units)
local repeated = redis.call('HGET', KEYS[3], request.hold)
if repeated then  -- the answer to this very request was lost on its way
  return {'ok', '0', '0', request.hold, request.expires_us, 'replayed', text(required)}
end
local own = 0  -- what this very workload holds already: it is replaced, so it counts as free
local present = nil
if request.workload ~= '' then
  local id = redis.call('HGET', KEYS[5], request.workload)
  local packed = id and redis.call('HGET', KEYS[3], id)
  if packed then
    present = cjson.decode(packed)
    present.id = id
    own = tonumber(present.amount) * tonumber(present.left)
  end
end

local granted, expired, spent = funds(now)
local available = granted - expired - spent - micro(KEYS[6], '') - micro(KEYS[7], '')
if present and own == required and present.tiers[2] == request.tiers[2] and present.tiers[3] == request.tiers[3] then
  return {'ok', text(available), '0', present.id, present.expires_us, 'replayed', text(required)}
end
-- Work that costs nothing is never refused for want of credits.
if required > 0 then
  if known[2] ~= '1' and available + own < required then
    return {'no_credits', text(available + own), '0', '', '', '', text(required)}
  end
  for index, budget in ipairs(request.budgets) do
    local tier = request.tiers[tonumber(budget[3])]
    local mine = (present and (present.tiers[2] == tier or present.tiers[3] == tier)) and own or 0
    local left = tonumber(budget[2]) - micro(KEYS[9], budget[1]) - micro(KEYS[6], tier) - micro(KEYS[7], tier) + mine
    if left < required then
      return {'budget_exhausted', text(left), tostring(index), '', '', '', text(required)}
    end
  end
end
if request.dry_run == '1' then
  return {'ok', text(available + own), '0', '', '', '', text(required)}
end
if present then
  drop_hold(present.id, nil)
end
redis.call('HSET', KEYS[3], request.hold, request.record)
redis.call('ZADD', KEYS[4], text(math.floor(tonumber(request.expires_us) / 1000)), request.hold)
if request.workload ~= '' then
  redis.call('HSET', KEYS[5], request.workload, request.hold)
end
for _, tier in ipairs(request.tiers) do
  redis.call('HINCRBY', KEYS[6], tier, text(required))
end
return {'ok', text(available + own - required), '0', request.hold, request.expires_us, 'new', text(required)}
