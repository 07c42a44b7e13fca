-- Put a tier of an org into a stage, with its journal entry and the event for others, in one step.
--
-- KEYS    1 stages, 2 org, 3 journal, 4 outbox
-- ARGV    1 tier, 2 what it was decided from: 'stage:since_us' ('0:0' for none), 3 state (JSON) or '' to forget it,
--         4 the same of that state, 5 word for the org's field `acting`, '' to drop it, '-' to leave it as it is,
--         6 journal entry (JSON) or '', 7 event (JSON) for the outbox or ''
-- Returns 'ok', also for a repetition, which writes nothing; 'conflict': somebody else changed it meanwhile.
local packed = redis.call('HGET', KEYS[1], ARGV[1])
local present = '0:0'
if packed then
  local state = cjson.decode(packed)
  present = string.format('%d:%.0f', state.stage, state.since_us)
end
if present == ARGV[4] then
  return 'ok'
end
if present ~= ARGV[2] then
  return 'conflict'
end
if ARGV[3] == '' then
  redis.call('HDEL', KEYS[1], ARGV[1])
else
  redis.call('HSET', KEYS[1], ARGV[1], ARGV[3])
end
if ARGV[5] == '' then
  redis.call('HDEL', KEYS[2], 'acting')
elseif ARGV[5] ~= '-' then
  redis.call('HSET', KEYS[2], 'acting', ARGV[5])
end
if ARGV[6] ~= '' then
  redis.call('XADD', KEYS[3], '*', 'entry', ARGV[6])
end
if ARGV[7] ~= '' then
  redis.call('RPUSH', KEYS[4], ARGV[7])
end
return 'ok'
