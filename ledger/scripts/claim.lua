-- Note who is charged for workloads from now on, each unless somebody else was noted meanwhile.
--
-- KEYS    1 claims of the cluster
-- ARGV    field, claim it was decided from ('' for none), claim; and so on
-- Returns the fields that now have another claim than either: decide anew.
local others = {}
for i = 1, #ARGV, 3 do
  local present = redis.call('HGET', KEYS[1], ARGV[i]) or ''
  if present ~= ARGV[i + 2] then
    if present == ARGV[i + 1] then
      redis.call('HSET', KEYS[1], ARGV[i], ARGV[i + 2])
    else
      others[#others + 1] = ARGV[i]
    end
  end
end
return others
