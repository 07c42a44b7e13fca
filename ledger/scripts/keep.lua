-- uses _common
-- Have holds live on, as their work waits still.
--
-- KEYS    the eight of _common
-- ARGV    1 until when (us) those live on that name no source, 2 those that do, 3... hold ids
-- Returns for each how long it lives on by that: 'listed' where it names the source that lists its work, else 'plain';
--         '' where there is no such hold (any more).
local kinds = {}
for i = 3, #ARGV do
  local packed = redis.call('HGET', KEYS[3], ARGV[i])
  local kind = ''
  if packed then
    kind = (cjson.decode(packed).source or '') ~= '' and 'listed' or 'plain'
    local until_us = kind == 'listed' and ARGV[2] or ARGV[1]
    redis.call('ZADD', KEYS[4], 'XX', text(math.floor(tonumber(until_us) / 1000)), ARGV[i])
  end
  kinds[#kinds + 1] = kind
end
return kinds
