-- uses _common
-- Create or edit an org.
--
-- KEYS    the eight of _common
-- ARGV    1 org name, 2 journal entry (JSON) or '', 3 revision that its settings must be of, '*' for any of an org that
--         is there, '' for any, 4 revision of what this call makes of them,
--         5... field, value pairs for the org hash ('' value removes)
-- Returns {'created'|'edited'|'same'}; {'changed'} where the revision is another one
local present = redis.call('HMGET', KEYS[1], 'known', 'settings_rev')
local created = not present[1]
if present[2] == ARGV[4] then
  return {'edited'}  -- the answer to this very request was lost on its way
end
if ARGV[3] ~= '' and (created or (ARGV[3] ~= '*' and ARGV[3] ~= (present[2] or '0'))) then
  return {'changed'}
end
local changed = created
redis.call('HSET', KEYS[1], 'name', ARGV[1], 'known', '1')
for i = 5, #ARGV, 2 do
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
redis.call('HSET', KEYS[1], 'settings_rev', ARGV[4])
if ARGV[2] ~= '' then
  redis.call('XADD', KEYS[8], '*', 'entry', ARGV[2])
end
return {created and 'created' or 'edited'}
