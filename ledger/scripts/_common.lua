-- Prelude of the scripts that touch funds or holds. Not a script of its own: the loader puts it before those
-- that start with `-- uses _common`.
--
-- Their KEYS begin with: 1 org, 2 purse, 3 holds, 4 holdexp, 5 holdof, 6 held, 7 running, 8 journal.
-- Amounts are below 2^53, so Lua's doubles hold them exactly; they leave scripts as strings.

local function text(number)
  return string.format('%.0f', number)
end

-- Microseconds since 1970: what the caller gives (tests), else the server's clock.
local function clock(given)
  if given and given ~= '' then
    return tonumber(given)
  end
  local t = redis.call('TIME')
  return tonumber(t[1]) * 1000000 + tonumber(t[2])
end

local function micro(key, field)
  return tonumber(redis.call('HGET', key, field) or '0')
end

-- 'starts|expires|remaining|scope'; expires is '' where the grant does not expire, scope where it pays any work.
local function parse_purse(entry)
  local starts, expires, remaining, scope = string.match(entry, '^(%d+)|(%d*)|(%d+)|?(.*)$')
  return tonumber(starts), tonumber(expires), tonumber(remaining), scope
end

-- Whether a restricted grant pays a class of work. Its scope is JSON: {clusters = names, presets = names}, none: any.
-- A class is 'c US cluster US preset', the preset '' where the work has none; '' is work of no known class.
local parsed_scopes = {}
local function accepts(scope, class)
  local known = parsed_scopes[scope]
  if not known then
    known = {answers = {}}
    for what, names in pairs(cjson.decode(scope)) do
      if #names > 0 then
        known[what] = {}
        for _, name in ipairs(names) do known[what][name] = true end
      end
    end
    parsed_scopes[scope] = known
  end
  if known.answers[class] == nil then
    local cluster, preset = string.match(class, '^c\31([^\31]*)\31(.*)$')
    known.answers[class] = cluster ~= nil and (not known.clusters or known.clusters[cluster] == true)
      and (not known.presets or known.presets[preset] == true)
  end
  return known.answers[class]
end

-- What is left of the grants, in the order in which they pay: the soonest to expire first, then restricted ones.
local function grants_in_order()
  local grants = {}
  local entries = redis.call('HGETALL', KEYS[2])
  for i = 1, #entries, 2 do
    local starts, expires, remaining, scope = parse_purse(entries[i + 1])
    grants[#grants + 1] = {id = entries[i], starts = starts, expires = expires, remaining = remaining, scope = scope}
  end
  table.sort(grants, function(a, b)
    local x, y = a.expires or 2 ^ 53, b.expires or 2 ^ 53
    if x ~= y then return x < y end
    if (a.scope == '') ~= (b.scope == '') then return b.scope == '' end
    if a.starts ~= b.starts then return a.starts < b.starts end
    return a.id < b.id
  end)
  return grants
end

local function take(grant, due)
  local paid = math.min(due, grant.remaining)
  grant.remaining = grant.remaining - paid
  grant.touched = true
  return due - paid
end

-- Pays work of a class from those grants that began before `until_` and ended after `since`; without a class, from
-- those that pay any work. Returns what they did not cover.
local function pay(grants, due, since, until_, class)
  for _, grant in ipairs(grants) do
    if due == 0 then break end
    if grant.remaining > 0 and grant.starts < until_ and (not grant.expires or grant.expires > since)
      and (grant.scope == '' or accepts(grant.scope, class or '')) then
      due = take(grant, due)
    end
  end
  return due
end

local function keep_grants(grants)
  for _, grant in ipairs(grants) do
    if grant.touched then
      if grant.remaining == 0 then
        redis.call('HDEL', KEYS[2], grant.id)
      else
        local entry = text(grant.starts) .. '|' .. (grant.expires and text(grant.expires) or '') .. '|'
          .. text(grant.remaining)
        redis.call('HSET', KEYS[2], grant.id, entry .. (grant.scope ~= '' and '|' .. grant.scope or ''))
      end
    end
  end
end

-- Puts what fewer restricted grants pay for first: it is not to find that others, who had a choice, used them up.
local function narrowest_first(grants, dues)
  local choices = {}
  for _, due in ipairs(dues) do
    local count = 0
    for _, grant in ipairs(grants) do
      if grant.scope ~= '' and grant.remaining > 0 and accepts(grant.scope, due.class) then count = count + 1 end
    end
    choices[due.class] = count
  end
  table.sort(dues, function(a, b)
    if choices[a.class] ~= choices[b.class] then return choices[a.class] < choices[b.class] end
    return a.class < b.class
  end)
end

-- What no grant paid, per class of work ('' first read: what any unrestricted grant pays), and the end of the last use
-- that it is owed for.
local function read_debts()
  local owed = redis.call('HMGET', KEYS[1], 'debt', 'debt_at', 'debts')
  local debts = {{class = '', due = tonumber(owed[1] or '0'), at = tonumber(owed[2] or '0')}}
  for class, debt in pairs(owed[3] and cjson.decode(owed[3]) or {}) do
    local due, at = string.match(debt, '^(%d+)|(%d+)$')
    debts[#debts + 1] = {class = class, due = tonumber(due), at = tonumber(at)}
  end
  return debts
end

local function keep_debts(debts)
  local classed, has_classed = {}, false
  for _, debt in ipairs(debts) do
    if debt.class == '' then
      redis.call('HSET', KEYS[1], 'debt', text(debt.due), 'debt_at', text(debt.at))
    elseif debt.due > 0 then
      classed[debt.class], has_classed = text(debt.due) .. '|' .. text(debt.at), true
    end
  end
  if has_classed then
    redis.call('HSET', KEYS[1], 'debts', cjson.encode(classed))
  elseif #debts > 1 then
    redis.call('HDEL', KEYS[1], 'debts')
  end
end

local function add_debt(debts, class, due, at)
  for _, debt in ipairs(debts) do
    if debt.class == class then
      debt.at = (class == '' or debt.due > 0) and math.max(debt.at, at) or at
      debt.due = debt.due + due
      return
    end
  end
  debts[#debts + 1] = {class = class, due = due, at = at}
end

-- Pays what is owed from the grants that began before `until_` and ended after it came to be owed.
local function pay_debts(grants, debts, until_)
  local paid = false
  if #debts > 1 then narrowest_first(grants, debts) end
  for _, debt in ipairs(debts) do
    local rest = pay(grants, debt.due, debt.at, until_, debt.class)
    paid = paid or rest ~= debt.due
    debt.due = rest
  end
  return paid
end

-- Pays overdrafts from every grant that has come into force after they arose, also where that grant has expired
-- since: nobody needs to have looked in between. Returns what is owed still.
local function pay_debt(now)
  local debts = read_debts()
  local owed = 0
  for _, debt in ipairs(debts) do owed = owed + debt.due end
  if owed > 0 then
    local grants = grants_in_order()
    if pay_debts(grants, debts, now + 1) then
      keep_grants(grants)
      keep_debts(debts)
    end
  end
  return debts
end

-- Takes credits back: from the grant `own` first, also where it has not begun, is over or restricted; then from those
-- in force that pay any work. Returns what they did not cover; what `own` gave while it was not in force, and when that
-- counts: when it begins, or when it ended.
local function withdraw(asked, own, now)
  pay_debt(now)
  local grants, due = grants_in_order(), asked
  local apart, apart_at = 0, 0
  for _, grant in ipairs(grants) do
    if grant.id == own then
      due = take(grant, due)
      if grant.starts > now or grant.expires and grant.expires <= now then
        apart, apart_at = asked - due, grant.starts > now and grant.starts or grant.expires
      end
    end
  end
  due = pay(grants, due, now, now + 1)
  keep_grants(grants)
  return due, apart, apart_at
end

-- Makes an overdraft of what no grant covers: the next grant pays it.
local function owe(due, now)
  if due > 0 then
    redis.call('HINCRBY', KEYS[1], 'debt', text(due))
    redis.call('HSET', KEYS[1], 'debt_at', text(math.max(micro(KEYS[1], 'debt_at'), now)))
  end
end

-- Micro-credits as a decimal number of credits.
local function credits(amount)
  local sign = amount < 0 and '-' or ''
  amount = math.abs(amount)
  local whole = math.floor(amount / 1000000)
  local part = string.gsub(string.format('%06.0f', amount - whole * 1000000), '0+$', '')
  return sign .. text(whole) .. (part ~= '' and '.' .. part or '')
end

-- What of the grants counts now: granted, expired, spent; then what is left of those that pay any work, of the others
-- by scope (nil where nothing is), and what is owed.
local function funds(now)
  local debts = pay_debt(now)
  local granted = micro(KEYS[1], 'granted')
  local expired, free, lefts = 0, 0, nil
  local purse = redis.call('HVALS', KEYS[2])
  for i = 1, #purse do
    local starts, expires, remaining, scope = parse_purse(purse[i])
    if starts > now then
      granted = granted - remaining
    elseif expires and expires <= now then
      expired = expired + remaining
    elseif scope == '' then
      free = free + remaining
    else
      lefts = lefts or {}
      lefts[scope] = (lefts[scope] or 0) + remaining
    end
  end
  return granted, expired, micro(KEYS[1], 'spent'), free, lefts, debts
end

-- The classes of work that an org with restricted grants had sums of, ever.
local function known_classes()
  local classes = {}
  for class in string.gmatch(redis.call('HGET', KEYS[1], 'classes') or '', '[^\30]+') do
    classes[#classes + 1] = class
  end
  return classes
end

local function class_of(hold)
  local preset = type(hold.preset) == 'string' and hold.preset ~= hold.app and hold.preset or ''
  return 'c\31' .. hold.cluster .. '\31' .. preset
end

local function note_class(class)
  for _, known in ipairs(known_classes()) do
    if known == class then return end
  end
  local before = redis.call('HGET', KEYS[1], 'classes')
  redis.call('HSET', KEYS[1], 'classes', (before and before .. '\30' or '') .. class)
end

-- What may still be set aside for work of a class in an org with restricted grants (`free`, `lefts`, `debts`: of funds).
-- All that is held, owed and to be held for running work is covered together with it if no set of grants is asked for
-- more than it has by the work that no other grant pays for (Hall); only sets that contain all grants which pay
-- this work can be asked for more by it. `own`: set aside for it already, as work of the class `of`.
local function room(class, free, lefts, debts, own, of)
  local scopes, demand = {}, {}
  for scope in pairs(lefts) do scopes[#scopes + 1] = scope end
  local function mask_of(work)
    local mask = 0
    for n, scope in ipairs(scopes) do
      if accepts(scope, work) then mask = mask + 2 ^ (n - 1) end
    end
    return mask
  end
  local function ask(work, amount)
    local mask = mask_of(work)
    demand[mask] = (demand[mask] or 0) + amount
  end
  local rest = micro(KEYS[6], '') + micro(KEYS[7], '')
  local classes = known_classes()
  local held = #classes > 0 and redis.call('HMGET', KEYS[6], unpack(classes))
  local running = #classes > 0 and redis.call('HMGET', KEYS[7], unpack(classes))
  for n, known in ipairs(classes) do
    local amount = tonumber(held[n] or '0') + tonumber(running[n] or '0')
    rest = rest - amount
    ask(known, amount)
  end
  ask('', rest)  -- what was set aside before the org had restricted grants, and is not looked at anew yet
  for _, debt in ipairs(debts) do ask(debt.class, debt.due) end
  ask(of, 0 - own)
  local needed, least = mask_of(class), nil
  for set = 0, 2 ^ #scopes - 1 do
    if bit.band(set, needed) == needed then
      local amount = free
      for n, scope in ipairs(scopes) do
        if bit.band(set, 2 ^ (n - 1)) ~= 0 then amount = amount + lefts[scope] end
      end
      for mask, asked in pairs(demand) do
        if bit.band(set, mask) == mask then amount = amount - asked end
      end
      least = math.min(least or amount, amount)
    end
  end
  return least
end

-- Takes `units` of a hold away (all of it when units is nil); its tiers' sums follow. `by`: the workload they are
-- taken for, which takes only once: started anew, it leaves the units of those that still wait.
local function drop_hold(id, units, by)
  local packed = redis.call('HGET', KEYS[3], id)
  if not packed then
    return nil
  end
  local hold = cjson.decode(packed)
  local left = tonumber(hold.left)
  if by and hold.taken and hold.taken[by] then
    return 0
  end
  if units == nil or units > left then
    units = left
  end
  local amount = tonumber(hold.amount) * units
  for _, tier in ipairs(hold.tiers) do
    local rest = redis.call('HINCRBY', KEYS[6], tier, text(0 - amount))  -- -0 would be the text '-0', no integer
    if tonumber(rest) == 0 then
      redis.call('HDEL', KEYS[6], tier)
    end
  end
  if left - units <= 0 then
    redis.call('HDEL', KEYS[3], id)
    redis.call('ZREM', KEYS[4], id)
    if type(hold.workload) == 'string' and redis.call('HGET', KEYS[5], hold.workload) == id then
      redis.call('HDEL', KEYS[5], hold.workload)
    end
  else
    hold.left = text(left - units)
    if by then
      hold.taken = hold.taken or {}
      hold.taken[by] = 1
    end
    redis.call('HSET', KEYS[3], id, cjson.encode(hold))
  end
  return amount
end

-- What `settled` counts from, of each hold that was not there yet: units of it that were charged by then.
local SETTLED_NONE = 2 ^ 52

-- Ends holds whose time is over, so many at once at most that no call takes long. Returns whether there are more: what
-- these set aside still counts, so whoever is to look at sums answers 'more', and is asked again.
local EXPIRED_AT_ONCE = 500
local function expire_holds(now)
  local due = redis.call(
    'ZRANGEBYSCORE', KEYS[4], '-inf', text(math.floor(now / 1000)), 'LIMIT', 0, EXPIRED_AT_ONCE + 1)
  if #due == 0 then return false end
  local more = #due > EXPIRED_AT_ONCE
  if more then due[#due] = nil end
  local sums, named, theirs = {}, {}, {}
  for n, packed in ipairs(redis.call('HMGET', KEYS[3], unpack(due))) do
    if packed then
      local hold = cjson.decode(packed)
      local amount = tonumber(hold.amount) * tonumber(hold.left)
      for _, tier in ipairs(hold.tiers) do sums[tier] = (sums[tier] or 0) + amount end
      if type(hold.workload) == 'string' then
        named[#named + 1], theirs[#theirs + 1] = hold.workload, due[n]
      end
    end
  end
  for tier, amount in pairs(sums) do
    if tonumber(redis.call('HINCRBY', KEYS[6], tier, text(0 - amount))) == 0 then
      redis.call('HDEL', KEYS[6], tier)
    end
  end
  redis.call('HDEL', KEYS[3], unpack(due))
  redis.call('ZREM', KEYS[4], unpack(due))
  if #named > 0 then
    local over = {}
    for n, id in ipairs(redis.call('HMGET', KEYS[5], unpack(named))) do
      if id == theirs[n] then over[#over + 1] = named[n] end
    end
    if #over > 0 then redis.call('HDEL', KEYS[5], unpack(over)) end
  end
  return more
end
