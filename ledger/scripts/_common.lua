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

-- What of the grants counts now: granted, expired, spent.
local function funds(now)
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

-- Takes `units` of a hold away (all of it when units is nil); its tiers' sums follow.
local function drop_hold(id, units)
  local packed = redis.call('HGET', KEYS[3], id)
  if not packed then
    return nil
  end
  local hold = cjson.decode(packed)
  local left = tonumber(hold.left)
  if units == nil or units > left then
    units = left
  end
  local amount = tonumber(hold.amount) * units
  for _, tier in ipairs(hold.tiers) do
    local rest = redis.call('HINCRBY', KEYS[6], tier, text(-amount))
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

-- Pays an overdraft from grants that are in force; returns what of it is left.
local function pay_debt(debt, now)
  if debt <= 0 then
    return 0
  end
  local entries = redis.call('HGETALL', KEYS[2])
  for i = 1, #entries, 2 do
    local starts, expires, remaining = parse_purse(entries[i + 1])
    if debt > 0 and starts <= now and (not expires or expires > now) then
      local paid = math.min(debt, remaining)
      debt = debt - paid
      if remaining == paid then
        redis.call('HDEL', KEYS[2], entries[i])
      else
        redis.call('HSET', KEYS[2], entries[i], text(starts) .. '|' .. (expires and text(expires) or '') .. '|' .. text(remaining - paid))
      end
    end
  end
  redis.call('HSET', KEYS[1], 'debt', text(debt))
  return debt
end
