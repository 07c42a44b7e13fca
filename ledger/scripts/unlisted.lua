-- uses _common
-- Have holds end soon, as no list has their work any more; those that end sooner still do.
--
-- KEYS    the eight of _common, 9 unlisted of who asks
-- ARGV    1 now_us or '', 2 how long (us) they live on from now, 3 token: proves later that none of this was lost,
--         4... hold ids
local REMEMBERED_MS = 86400000
local until_ms = text(math.floor((clock(ARGV[1]) + tonumber(ARGV[2])) / 1000))
for i = 4, #ARGV do redis.call('ZADD', KEYS[4], 'XX', 'LT', until_ms, ARGV[i]) end
redis.call('SET', KEYS[9], ARGV[3], 'PX', REMEMBERED_MS)
