-- Set, or end, an org's auto top-up.
--
-- KEYS    1 top_up hash, 2 journal
-- ARGV    1 terms (JSON), '' ends it and forgets the card, 2 journal entry (JSON), 3 now_us, 4 random text, by which
--         nobody else can tell the ids of its orders, 5 revision that the terms must be of, '' or '*' for any,
--         6 revision of what this call makes of them
-- Returns 'set', 'same', or 'changed' where the revision is another one
--
-- Setting it is its owner's word to go on: a pause ends, and so does the pause's cool-down. An order in flight stays.
local rev = redis.call('HGET', KEYS[1], 'terms_rev')
if rev == ARGV[6] then
  return 'set'  -- the answer to this very request was lost on its way
end
if ARGV[5] ~= '' and ARGV[5] ~= '*' and ARGV[5] ~= (rev or '0') then
  return 'changed'
end
redis.call('HSETNX', KEYS[1], 'nonce', ARGV[4])
local before = redis.call('HGET', KEYS[1], 'terms') or ''
local paused = redis.call('HEXISTS', KEYS[1], 'paused') == 1
local has_card = redis.call('HEXISTS', KEYS[1], 'card') == 1
if before == ARGV[1] and not paused and not (ARGV[1] == '' and has_card) then
  return 'same'
end
if paused then
  redis.call('HDEL', KEYS[1], 'paused', 'cool_until')
end
redis.call('HDEL', KEYS[1], 'declines', 'capped')
if ARGV[1] == '' then
  redis.call('HDEL', KEYS[1], 'terms', 'card')
  redis.call('HSET', KEYS[1], 'removed_us', ARGV[3])
else
  redis.call('HSET', KEYS[1], 'terms', ARGV[1])
end
redis.call('HSET', KEYS[1], 'terms_rev', ARGV[6])
redis.call('XADD', KEYS[2], '*', 'entry', ARGV[2])
return 'set'
