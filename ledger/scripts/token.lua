-- Make or revoke a token.
--
-- KEYS    1 tokens
-- ARGV    1 token id, 2 record (JSON), '' revokes it, 3 '1': not where no token of role admin would be left that is valid,
--         4 now_us
-- Returns 'made', 'removed', 'absent' or 'last_admin'
if ARGV[2] ~= '' then
  redis.call('HSET', KEYS[1], ARGV[1], ARGV[2])
  return 'made'
end
local record = redis.call('HGET', KEYS[1], ARGV[1])
if not record then
  return 'absent'
end
if ARGV[3] == '1' and cjson.decode(record).role == 'admin' then
  local others = 0
  local all = redis.call('HGETALL', KEYS[1])
  for i = 1, #all, 2 do
    local other = cjson.decode(all[i + 1])
    local is_valid = type(other.expires_us) ~= 'number' or other.expires_us > tonumber(ARGV[4])
    if all[i] ~= ARGV[1] and other.role == 'admin' and is_valid then
      others = others + 1
    end
  end
  if others == 0 then
    return 'last_admin'
  end
end
redis.call('HDEL', KEYS[1], ARGV[1])
return 'removed'
