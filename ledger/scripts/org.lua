-- uses _common
-- Create or edit an org.
--
-- KEYS    the eight of _common
-- ARGV    1 org name, 2 journal entry (JSON) or '', 3... field, value pairs for the org hash ('' value removes)
-- Returns {'created'|'edited'|'same'}
local created = not redis.call('HGET', KEYS[1], 'known')
local changed = created
redis.call('HSET', KEYS[1], 'name', ARGV[1], 'known', '1')
for i = 3, #ARGV, 2 do
  local before = redis.call('HGET', KEYS[1], ARGV[i]) or ''
  if before ~= ARGV[i + 1] then
    changed = true
    if ARGV[i + 1] == '' then
      redis.call('HDEL', KEYS[1], ARGV[i])
    else
      redis.call('HSET', KEYS[1], ARGV[i], ARGV[i + 1])
    end
  end
end
if not changed then
  return {'same'}
end
if ARGV[2] ~= '' then
  redis.call('XADD', KEYS[8], '*', 'entry', ARGV[2])
end
return {created and 'created' or 'edited'}
