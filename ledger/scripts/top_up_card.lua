-- Keep the card that an org's owner agreed to have charged again.
--
-- KEYS    1 top_up hash, 2 journal
-- ARGV    1 card (JSON), 2 agreed_us: when the order was made that said so, 3 journal entry (JSON)
-- Returns {'kept'|'known'|'older'}: what was agreed to before a later card, or before the removal of all, is over.
local agreed = tonumber(ARGV[2])
local known = redis.call('HGET', KEYS[1], 'card')
if known == ARGV[1] then
  return {'known'}
end
if agreed <= tonumber(redis.call('HGET', KEYS[1], 'removed_us') or '-1')
  or (known and tonumber(cjson.decode(known).agreed_us) >= agreed) then
  return {'older'}
end
redis.call('HSET', KEYS[1], 'card', ARGV[1])
redis.call('XADD', KEYS[2], '*', 'entry', ARGV[3])
return {'kept'}
