-- uses _common
-- Decide over org, project and user budgets at once and set the credits aside, in one step; for several requests to
-- one org, as if each had come by itself, one after the other.
--
-- KEYS    the eight of _common, 9 budgetspent, 10 metered, 11 settled
-- ARGV    1 now_us or ''
--         2... one request each (msgpack list; a name that is missing is '', amounts below 2^53 + 2):
--           id          of the hold to make
--           record      JSON of the hold as it is to be stored
--           workload    cluster US workload id, or '' when not known yet
--           replaces    id of the hold the work has already or had, or ''; the new one takes its place and its id
--           owner       cluster US id of what the work is a part of, or ''; units of its hold pass to this one
--           amount      micro-credits of one unit
--           units       how many; 0: as many as the replaced hold has left
--           expires_us  when the hold expires
--           project, user  its tiers beside the org: fields of `held` and `running`
--           budgets     JSON list of {field of budgetspent, limit_micro, tier}, or ''
--           budget_rev  revision of the budgets the request was made from
--           unknown_org 'deny' or 'allow'
--           dry_run     true: decide only
--           was_let_in  true: it was let in without the ledger, and may be charged already
-- Returns a list for each request, in their order:
--         {code, available_micro, index of the budget that ran out or 0, hold id, expires_us,
--          'new'|'replayed'|'metered'|'unknown'|'', units, mode of the org's own policy or ''}
--   code 'ok', 'no_credits', 'budget_exhausted', 'unknown_org', 'off' (the org's own mode),
--   'stale' (budgets changed meanwhile: read again), or 'more' (ask again: there were too many holds to end at once, and
--   what they set aside still counts; who is admitted with it would be without). With such left, available_micro of who
--   is admitted is '': not known.
-- available_micro is the budget's where a budget ran out, and is what there is after a hold was made; in an org with
-- restricted grants it is what there is for this work. The org's credit line is not in it, and is counted beside it.
-- A repeated request for the same workload and amount answers with the hold it has, and when that expires by now;
-- another amount replaces it. Without a hold are let in: work that is charged already ('metered'), and work of an org
-- nobody knows ('unknown'), of which nothing is to stay behind.
local MICRO_MAX = 9007199254740991
local ORG = ''
local now = clock(ARGV[1])
local known, unlimited, revision, policy, credit_line, scoped = unpack(
  redis.call('HMGET', KEYS[1], 'known', 'unlimited', 'budget_rev', 'policy', 'credit_line', 'scoped'))
credit_line = tonumber(credit_line or '0')
policy = policy and policy ~= '' and cjson.decode(policy)
local mode = type(policy) == 'table' and type(policy.mode) == 'string' and policy.mode or ''

-- Read once for all requests, and as it is stored: what the requests themselves change is beside it until it is
-- written, all at once. `false` stands for what is not there.
local sums, records, hold_of
local made, expiries, named, added

local function forget_read()
  sums, records, hold_of = {[KEYS[6]] = {}, [KEYS[7]] = {}, [KEYS[9]] = {}}, {}, {}
end

local function write()
  if made and #made > 0 then
    redis.call('HSET', KEYS[3], unpack(made))
    redis.call('ZADD', KEYS[4], unpack(expiries))
    if #named > 0 then redis.call('HSET', KEYS[5], unpack(named)) end
    for tier, change in pairs(added) do redis.call('HINCRBY', KEYS[6], tier, text(change)) end
  end
  made, expiries, named, added = {}, {}, {}, {}
  forget_read()
end

local function sum(key, field)
  local amount = sums[key][field]
  if not amount then
    amount = micro(key, field)
    sums[key][field] = amount
  end
  return amount
end

-- What is set aside at a tier: in holds and for running work.
local function aside(tier)
  return sum(KEYS[6], tier) + (added[tier] or 0) + sum(KEYS[7], tier)
end

-- Whether there are holds whose time is over and that are not ended yet. Those that are met with are ended here.
local some_are_over = false

local function read_record(id)
  if records[id] == nil then
    records[id] = redis.call('HGET', KEYS[3], id)
    if some_are_over and records[id] and tonumber(redis.call('ZSCORE', KEYS[4], id) or now) <= now / 1000 then
      write()
      drop_hold(id)
      records[id] = false
    end
  end
  return records[id]
end

local function read_hold(id)
  local record = id and read_record(id)
  if not record then return nil end
  local hold = cjson.decode(record)
  return {id = id, amount = tonumber(hold.amount), left = tonumber(hold.left), project = hold.tiers[2],
    user = hold.tiers[3], class = hold.tiers[4], expires_us = tonumber(hold.expires_us)}
end

-- A hold that waits lives longer than its record says; the sorted set knows it to the millisecond.
local function expiry_of(id, said_us)
  local ms = tonumber(redis.call('ZSCORE', KEYS[4], id) or math.floor(said_us / 1000))
  return ms == math.floor(said_us / 1000) and said_us or ms * 1000
end

local function hold_of_workload(workload)
  if workload == '' then return nil end
  if hold_of[workload] == nil then hold_of[workload] = redis.call('HGET', KEYS[5], workload) end
  return read_hold(hold_of[workload])
end

local function drop(hold, units)
  write()
  drop_hold(hold.id, units)
end

local function make(id, record, workload, expires_us, required, project, user, class)
  made[#made + 1] = id
  made[#made + 1] = record
  expiries[#expiries + 1] = text(math.floor(expires_us / 1000))
  expiries[#expiries + 1] = id
  records[id] = record
  if workload ~= '' then
    named[#named + 1] = workload
    named[#named + 1] = id
    hold_of[workload] = id
  end
  added[ORG] = (added[ORG] or 0) + required
  added[project] = (added[project] or 0) + required
  added[user] = (added[user] or 0) + required
  if class and required > 0 then
    added[class] = (added[class] or 0) + required
    note_class(class)
  end
end

local budget_lists = {}
local function budgets_in(packed)
  local list = budget_lists[packed]
  if not list then
    list = packed ~= '' and cjson.decode(packed) or {}
    budget_lists[packed] = list
  end
  return list
end

local granted, expired, spent, free, restricted, debts

-- What the org has left for new work of a class (nil where it never had restricted grants), with what the work has set
-- aside already: `own`, as work of the class `of`.
local function org_has(class, own, of)
  if class and restricted then
    write()  -- what is set aside for other classes is read as it is stored
    return room(class, free, restricted, debts, own, of or '')
  end
  return granted - expired - spent - aside(ORG) + own
end

local function decide(request)
  local id, record, workload, replaces, owner_workload, amount, units, expires_us, project, user, budgets, budget_rev,
    unknown_org, dry_run, was_let_in = unpack(request)
  local function refusal(code, available, index)
    if some_are_over and available then code = 'more' end
    return {code, available or 0, index or 0, '', 0, '', units, mode}
  end
  if not known and unknown_org ~= 'allow' then return refusal('unknown_org') end
  if (revision or '0') ~= budget_rev then return refusal('stale') end

  local name = id
  local present = nil  -- the hold this very work has: it is replaced, so it counts as free
  if replaces ~= '' then
    present = read_hold(replaces)
    name = replaces  -- also where that one has ended: it is what the scheduler knows the work's hold by
  end
  present = present or hold_of_workload(workload)
  local is_kept = units == 0
  if is_kept then units = present and present.left or 1 end
  local required = amount * units
  local class = scoped and class_of(cjson.decode(record)) or nil
  local own = present and present.amount * present.left or 0
  local function admission(available, hold, expiry, novelty)
    if some_are_over then available = '' end
    return {'ok', available, 0, hold, expiry, novelty, units, mode}
  end
  if not known then return admission(0, '', 0, 'unknown') end
  if read_record(id) then  -- the answer to this very request was lost on its way
    return admission(org_has(class, 0), id, expiry_of(id, read_hold(id).expires_us), 'replayed')
  end
  if present and own == required and present.project == project and present.user == user and present.class == class then
    return admission(org_has(class, 0), present.id, expiry_of(present.id, present.expires_us), 'replayed')
  end
  local is_metered = workload ~= '' and (units == 1 or was_let_in) and redis.call('SISMEMBER', KEYS[10], workload) == 1
  local is_settled = not present and is_metered
  local is_part = false
  if was_let_in and redis.call('ZSCORE', KEYS[11], id) then
    -- Of an array that was let in without the ledger some tasks may be charged already, before its hold is made.
    local charged = tonumber(redis.call('ZSCORE', KEYS[11], id .. '\31') or 2 ^ 53) - SETTLED_NONE
    is_part = not is_settled and charged < units
    is_settled = not is_part
    if is_part then
      units = units - charged
      required = amount * units
    end
  end
  if is_settled then return admission(org_has(class, 0), '', 0, 'metered') end
  local owner, passing = nil, 0
  if not present then
    owner = hold_of_workload(owner_workload)
    passing = owner and math.min(units, owner.left) or 0
    own = owner and owner.amount * passing or 0
  end
  local free_in = present or owner
  local available = org_has(class, own, free_in and free_in.class)

  -- Work that costs nothing is never refused for want of credits.
  if required > 0 then
    -- Nobody has an unlimited org's balance to look at; sums stay countable all the same.
    local countable = sum(KEYS[6], ORG) + (added[ORG] or 0) + required <= MICRO_MAX
    if not countable or (unlimited ~= '1' and available + credit_line < required) then
      return refusal('no_credits', available)
    end
    for index, budget in ipairs(budgets_in(budgets)) do
      local field, limit, tier = unpack(budget)
      local mine = (free_in and (free_in.project == tier or free_in.user == tier)) and own or 0
      local left = limit - sum(KEYS[9], field) - aside(tier) + mine
      if left < required then return refusal('budget_exhausted', left, index) end
    end
  end
  if dry_run and some_are_over then return refusal('more') end
  if dry_run then return admission(available, '', 0, '') end
  if present then
    drop(present, nil)
  elseif passing > 0 then
    drop(owner, passing)
  end
  if is_part then redis.call('ZREM', KEYS[11], id .. '\31') end
  if is_kept or is_part or class then
    local hold = cjson.decode(record)
    hold.left = text(units)
    hold.tiers[4] = class
    record = cjson.encode(hold)
  end
  make(name, record, workload, expires_us, required, project, user, class)
  return admission(available - required, name, expires_us, 'new')
end

local requests, ids = {}, {}
for i = 2, #ARGV do
  requests[i - 1] = cmsgpack.unpack(ARGV[i])
  ids[i - 1] = requests[i - 1][1]
end
local answers = {}
if mode == 'off' then
  for i = 1, #requests do answers[i] = {'off', 0, 0, '', 0, '', 0, mode} end
  return answers
end
write()
some_are_over = expire_holds(now)
granted, expired, spent, free, restricted, debts = funds(now)
if not some_are_over then
  for i, record in ipairs(redis.call('HMGET', KEYS[3], unpack(ids))) do records[ids[i]] = record end
end
for i = 1, #requests do answers[i] = decide(requests[i]) end
write()
return answers
