-- uses _common
-- Decide over org, project and user budgets at once and set the credits aside, in one step.
--
-- KEYS    the eight of _common, 9 budgetspent
-- ARGV    1 request (msgpack map):
--           hold        id of the hold to make
--           record      JSON of the hold as it is to be stored
--           workload    cluster US workload id, or '' when not known yet
--           replaces    id of the hold the work has already, or ''; the new one takes its place and its id
--           owner       cluster US id of what the work is a part of, or ''; units of its hold pass to this one
--           amount      micro-credits of one unit (string)
--           units       how many (string); '' as many as the replaced hold has left
--           expires_us  when the hold expires (string)
--           tiers       fields of `held` and `running`: org, project, user
--           budgets     list of {field of budgetspent, limit_micro, index into tiers}
--           budget_rev  revision of the budgets the request was made from
--           unknown_org 'deny' or 'allow'
--           dry_run     '1': decide only
--         2 now_us or ''
-- Returns {code, available_micro, index of the budget that ran out or '0', hold id, expires_us,
--          'new'|'replayed'|'', required, mode of the org's own policy or ''}
--   code 'ok', 'no_credits', 'budget_exhausted', 'unknown_org', 'off' (the org's own mode),
--   or 'stale' (budgets changed meanwhile: read again)
-- available_micro is the budget's where a budget ran out, and is what there is after a hold was made.
-- A repeated request for the same workload and amount answers with the hold it has; another amount replaces it.
local MICRO_MAX = 9007199254740991
local request = cmsgpack.unpack(ARGV[1])
local now = clock(ARGV[2])
local known = redis.call('HMGET', KEYS[1], 'known', 'unlimited', 'budget_rev', 'policy')
local mode = ''
if known[4] and known[4] ~= '' then
  local policy = cjson.decode(known[4])
  mode = type(policy) == 'table' and type(policy.mode) == 'string' and policy.mode or ''
end
if mode == 'off' then
  return {'off', '0', '0', '', '', '', '0', mode}
end
if not known[1] and request.unknown_org ~= 'allow' then
  return {'unknown_org', '0', '0', '', '', '', '0', mode}
end
if (known[3] or '0') ~= request.budget_rev then
  return {'stale', '0', '0', '', '', '', '0', mode}
end
expire_holds(now)

local function read_hold(id)
  local packed = id and redis.call('HGET', KEYS[3], id)
  local hold = packed and cjson.decode(packed)
  if hold then hold.id = id end
  return hold
end

local name = request.hold
local present = nil  -- the hold this very work has: it is replaced, so it counts as free
if request.replaces ~= '' then
  present = read_hold(request.replaces)
  name = present and present.id or name
end
if not present and request.workload ~= '' then
  present = read_hold(redis.call('HGET', KEYS[5], request.workload))
end
local units = tonumber(request.units) or (present and tonumber(present.left)) or 1
local required = tonumber(request.amount) * units
local own = present and tonumber(present.amount) * tonumber(present.left) or 0

local granted, expired, spent = funds(now)
local available = granted - expired - spent - micro(KEYS[6], '') - micro(KEYS[7], '')
if read_hold(request.hold) then  -- the answer to this very request was lost on its way
  return {'ok', text(available), '0', request.hold, request.expires_us, 'replayed', text(required), mode}
end
if present and own == required and present.tiers[2] == request.tiers[2] and present.tiers[3] == request.tiers[3] then
  return {'ok', text(available), '0', present.id, present.expires_us, 'replayed', text(required), mode}
end
local owner, passing = nil, 0
if not present and request.owner ~= '' then
  owner = read_hold(redis.call('HGET', KEYS[5], request.owner))
  passing = owner and math.min(units, tonumber(owner.left)) or 0
  own = owner and tonumber(owner.amount) * passing or 0
end
local free_in = present or owner

-- Work that costs nothing is never refused for want of credits.
if required > 0 then
  -- Nobody has an unknown org's or an unlimited org's balance to look at; sums stay countable all the same.
  local countable = micro(KEYS[6], '') + required <= MICRO_MAX
  if not countable or (known[1] and known[2] ~= '1' and available + own < required) then
    return {'no_credits', text(available + own), '0', '', '', '', text(required), mode}
  end
  for index, budget in ipairs(request.budgets) do
    local tier = request.tiers[tonumber(budget[3])]
    local mine = (free_in and (free_in.tiers[2] == tier or free_in.tiers[3] == tier)) and own or 0
    local left = tonumber(budget[2]) - micro(KEYS[9], budget[1]) - micro(KEYS[6], tier) - micro(KEYS[7], tier) + mine
    if left < required then
      return {'budget_exhausted', text(left), tostring(index), '', '', '', text(required), mode}
    end
  end
end
if request.dry_run == '1' then
  return {'ok', text(available + own), '0', '', '', '', text(required), mode}
end
if present then
  drop_hold(present.id, nil)
elseif passing > 0 then
  drop_hold(owner.id, passing)
end
local record = request.record
if request.units == '' then
  local hold = cjson.decode(record)
  hold.left = text(units)
  record = cjson.encode(hold)
end
redis.call('HSET', KEYS[3], name, record)
redis.call('ZADD', KEYS[4], text(math.floor(tonumber(request.expires_us) / 1000)), name)
if request.workload ~= '' then
  redis.call('HSET', KEYS[5], request.workload, name)
end
for _, tier in ipairs(request.tiers) do
  redis.call('HINCRBY', KEYS[6], tier, text(required))
end
return {'ok', text(available + own - required), '0', name, request.expires_us, 'new', text(required), mode}
