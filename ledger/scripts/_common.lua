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

-- 'starts|expires|remaining'; expires is '' where the grant does not expire.
local function parse_purse(entry)
  local starts, expires, remaining = string.match(entry, '^(%d+)|(%d*)|(%d+)')
  return tonumber(starts), tonumber(expires), tonumber(remaining)
end

-- What is left of the grants, in the order in which they pay: the soonest to expire first.
local function grants_in_order()
  local grants = {}
  local entries = redis.call('HGETALL', KEYS[2])
  for i = 1, #entries, 2 do
    local starts, expires, remaining = parse_purse(entries[i + 1])
    grants[#grants + 1] = {id = entries[i], starts = starts, expires = expires, remaining = remaining}
  end
  table.sort(grants, function(a, b)
    local x, y = a.expires or 2 ^ 53, b.expires or 2 ^ 53
    if x ~= y then return x < y end
    if a.starts ~= b.starts then return a.starts < b.starts end
    return a.id < b.id
  end)
  return grants
end

-- Pays from those grants that began before `until_` and ended after `since`; returns what they did not cover.
local function pay(grants, due, since, until_)
  for _, grant in ipairs(grants) do
    if due == 0 then break end
    if grant.remaining > 0 and grant.starts < until_ and (not grant.expires or grant.expires > since) then
      local paid = math.min(due, grant.remaining)
      grant.remaining = grant.remaining - paid
      grant.touched = true
      due = due - paid
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
        redis.call('HSET', KEYS[2], grant.id,
          text(grant.starts) .. '|' .. (grant.expires and text(grant.expires) or '') .. '|' .. text(grant.remaining))
      end
    end
  end
end

-- Pays an overdraft from every grant that has come into force after it arose, also where that grant has expired
-- since: nobody needs to have looked in between.
local function pay_debt(now)
  local debt = micro(KEYS[1], 'debt')
  if debt == 0 then
    return
  end
  local grants = grants_in_order()
  local rest = pay(grants, debt, micro(KEYS[1], 'debt_at'), now + 1)
  if rest ~= debt then
    keep_grants(grants)
    redis.call('HSET', KEYS[1], 'debt', text(rest))
  end
end

-- Takes credits back: from the grant `own` first, also where it has not begun or is over, then from those in force.
-- Returns what they did not cover.
local function withdraw(asked, own, now)
  pay_debt(now)
  local grants, first = grants_in_order(), {}
  for _, grant in ipairs(grants) do
    if grant.id == own then first[1] = grant end
  end
  local due = pay(first, asked, -1, 2 ^ 53)
  due = pay(grants, due, now, now + 1)
  keep_grants(grants)
  return due
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

-- What of the grants counts now: granted, expired, spent.
local function funds(now)
  pay_debt(now)
  local granted = micro(KEYS[1], 'granted')
  local expired = micro(KEYS[1], 'expired')
  local purse = redis.call('HVALS', KEYS[2])
  for i = 1, #purse do
    local starts, expires, remaining = parse_purse(purse[i])
    if starts > now then
      granted = granted - remaining
    elseif expires and expires <= now then
      expired = expired + remaining
    end
  end
  return granted, expired, micro(KEYS[1], 'spent')
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

-- Ends the holds whose time is over.
local function expire_holds(now)
  local due = redis.call('ZRANGEBYSCORE', KEYS[4], '-inf', text(math.floor(now / 1000)))
  for _, id in ipairs(due) do
    drop_hold(id, nil)
  end
  return #due
end
