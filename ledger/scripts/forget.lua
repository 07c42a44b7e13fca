-- Give up the records of runs that ended long ago: what they were charged goes into sums per row.
--
-- KEYS    1 org, 2 ended, 3 forgotten
-- ARGV    1 plan (msgpack map; every amount is a string of an integer):
--           expected    commit token that the sums were computed from ('' for an org without one)
--           token       this commit's own token, so that exporters read the org again
--           bound       instant (us): a run that has no record is not charged for time before it
--           fields      fields of ended to drop
--           sums        list of {row number, micro, us, refunded micro, refunded us} of these
-- Returns 'ok'; 'conflict': the org moved on meanwhile, compute again.
local plan = cmsgpack.unpack(ARGV[1])
local commit = redis.call('HGET', KEYS[1], 'commit') or ''
if commit == plan.token then
  return 'ok'  -- the answer to this very request was lost on its way
end
if commit ~= plan.expected then
  return 'conflict'
end
for _, sum in ipairs(plan.sums) do
  for index, suffix in ipairs({'', 't', 'r', 'u'}) do
    if sum[index + 1] ~= '0' then
      redis.call('HINCRBY', KEYS[3], sum[1] .. suffix, sum[index + 1])
    end
  end
end
for _, field in ipairs(plan.fields) do
  redis.call('HDEL', KEYS[2], field)
end
redis.call('HSET', KEYS[1], 'forgotten_us', plan.bound, 'commit', plan.token)
return 'ok'
