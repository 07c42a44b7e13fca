-- uses _common
-- Have holds live on, as their work waits still.
--
-- KEYS    the eight of _common
-- ARGV    1 now_us or '', 2 how long (us) those live on from now that name no source, 3 those that do, 4... hold ids
-- Returns for each how long it lives on by that: 'listed' where it names the source that lists its work, else 'plain';
--         '' where there is no such hold (any more).
local now = clock(ARGV[1])
local kinds = {}
for i = 4, #ARGV do
  local packed = redis.call('HGET', KEYS[3], ARGV[i])
  local kind = ''
  if packed then
    kind = (cjson.decode(packed).source or '') ~= '' and 'listed' or 'plain'
    local life_us = tonumber(kind == 'listed' and ARGV[3] or ARGV[2])
    redis.call('ZADD', KEYS[4], 'XX', text(math.floor((now + life_us) / 1000)), ARGV[i])
  end
  kinds[#kinds + 1] = kind
end
return kinds
