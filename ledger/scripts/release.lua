-- uses _common
-- End a hold: its job was not started after all.
--
-- KEYS    the eight of _common
-- ARGV    1 hold id, 2 now_us or ''
-- Returns {'released', amount_micro} or {'absent', '0'}: settled, expired or released before.
expire_holds(clock(ARGV[2]))
local amount = drop_hold(ARGV[1], nil)
if amount then
  return {'released', text(amount)}
end
return {'absent', '0'}
