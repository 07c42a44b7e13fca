-- uses _common
-- Give credits to an org, at most once for an idempotency key, for ever.
--
-- KEYS    the eight of _common, 9 grants (hash key -> record)
-- ARGV    1 idempotency key, 2 record (JSON), 3 digest of the body, 4 amount_micro (> 0), 5 source,
--         6 starts_us, 7 expires_us or '', 8 journal entry (JSON), 9 largest amount, 10 now_us or '', 11 org name,
--         12 scope (JSON: the work that it pays for) or '', 13 how many different scopes there may be,
--         14 the record (JSON) where nothing is known of the org yet
-- Returns {'granted'|'replayed'|'conflict'|'too_large'|'too_many_scopes', record}
--
-- An overdraft is paid from the grant at once if it is in force; else when it comes into force.
local known = redis.call('HGET', KEYS[9], ARGV[1])
if known then
  if cjson.decode(known).digest == ARGV[3] then
    return {'replayed', known}
  end
  return {'conflict', known}
end
local amount, scope = tonumber(ARGV[4]), ARGV[12] or ''
local now = clock(ARGV[10])
if micro(KEYS[1], 'granted') + amount > tonumber(ARGV[9]) then
  return {'too_large', ''}
end

local function is_one_too_many()
  local others, count = {}, 1
  for _, grant in ipairs(grants_in_order()) do
    local is_over = grant.expires and grant.expires <= now
    if grant.scope == scope and not is_over then return false end
    if grant.scope ~= '' and grant.scope ~= scope and not is_over and not others[grant.scope] then
      others[grant.scope], count = true, count + 1
    end
  end
  return count > tonumber(ARGV[13])
end

-- From its first restricted grant on an org's holds are told apart by class of work, like what exporters set aside.
local function tell_holds_apart()
  local holds = redis.call('HGETALL', KEYS[3])
  for i = 1, #holds, 2 do
    local hold = cjson.decode(holds[i + 1])
    local class = class_of(hold)
    hold.tiers[#hold.tiers + 1] = class
    redis.call('HSET', KEYS[3], holds[i], cjson.encode(hold))
    redis.call('HINCRBY', KEYS[6], class, text(tonumber(hold.amount) * tonumber(hold.left)))
    note_class(class)
  end
end

local is_edge = ARGV[7] ~= ''  -- charges are cut where it begins and ends
if scope ~= '' then
  if is_one_too_many() then
    return {'too_many_scopes', ''}
  end
  if redis.call('HSETNX', KEYS[1], 'scoped', '1') == 1 then
    tell_holds_apart()
    is_edge = true  -- exporters have to know that they tell classes apart now
  end
end
local record = redis.call('HEXISTS', KEYS[1], 'name') == 0 and ARGV[14] or ARGV[2]
redis.call('HSET', KEYS[9], ARGV[1], record)
redis.call('HSET', KEYS[1], 'name', ARGV[11], 'known', '1')
redis.call('HINCRBY', KEYS[1], 'granted', ARGV[4])
redis.call('HINCRBY', KEYS[1], 'granted:' .. ARGV[5], ARGV[4])
redis.call('HSET', KEYS[2], ARGV[1],
  ARGV[6] .. '|' .. ARGV[7] .. '|' .. ARGV[4] .. (scope ~= '' and '|' .. scope or ''))
if is_edge then
  redis.call('HINCRBY', KEYS[1], 'budget_rev', 1)
end
redis.call('XADD', KEYS[8], '*', 'entry', ARGV[8])
pay_debt(now)
return {'granted', record}
