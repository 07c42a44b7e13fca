-- Record the next order of an org's auto top-up, unless one is in flight: before anything is charged.
--
-- KEYS    1 top_up hash, 2 purchases, 3 journal
-- ARGV    1 terms and 2 card it was decided from (JSON), 3 number of orders before it, 4 now_us, 5 month, 6 amount_micro,
--         7 monthly cap (micro), 8 order id, 9 order (JSON), 10 journal entry (JSON),
--         11 journal entry where the cap is reached
-- Returns {'claimed', order (JSON)}; {'changed'|'in_flight'|'paused'|'cooling'|'capped'}. A repeated call finds its own
--   order and gives it again.
--
-- The number of orders is read before the balance: an order that came meanwhile makes it 'changed'. The month's sum
-- grows here and nowhere else, so no two processes take it over the cap.
local order = redis.call('HGET', KEYS[1], 'order') or ''
if order == ARGV[8] then
  return {'claimed', redis.call('HGET', KEYS[2], ARGV[8])}
elseif order ~= '' then
  return {'in_flight'}
end
if (redis.call('HGET', KEYS[1], 'terms') or '') ~= ARGV[1] or (redis.call('HGET', KEYS[1], 'card') or '') ~= ARGV[2]
  or (redis.call('HGET', KEYS[1], 'seq') or '0') ~= ARGV[3] then
  return {'changed'}
elseif redis.call('HEXISTS', KEYS[1], 'paused') == 1 then
  return {'paused'}
elseif tonumber(redis.call('HGET', KEYS[1], 'cool_until') or '0') > tonumber(ARGV[4]) then
  return {'cooling'}
end
local month = 'month:' .. ARGV[5]
if tonumber(redis.call('HGET', KEYS[1], month) or '0') + tonumber(ARGV[6]) > tonumber(ARGV[7]) then
  if redis.call('HGET', KEYS[1], 'capped') ~= ARGV[5] then
    redis.call('HSET', KEYS[1], 'capped', ARGV[5])
    redis.call('XADD', KEYS[3], '*', 'entry', ARGV[11])
  end
  return {'capped'}
end
redis.call('HINCRBY', KEYS[1], month, ARGV[6])
redis.call('HINCRBY', KEYS[1], 'seq', 1)
redis.call('HSET', KEYS[1], 'order', ARGV[8])
redis.call('HSET', KEYS[2], ARGV[8], ARGV[9])
redis.call('XADD', KEYS[3], '*', 'entry', ARGV[10])
return {'claimed', ARGV[9]}
