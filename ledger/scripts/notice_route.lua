-- Put an event into the notices to whom it concerns, and note that this is done, in one step.
--
-- KEYS    1 cursors, 2 notices, 3 when they are due (sorted set, ms), 4 open notices by group, 5 when a notice of a
--         group was last sent (ms)
-- ARGV    1 place in the stream it is read from, 2 the event's own, 3 now_ms, 4 event (JSON), 5 how many events a notice
--         takes; then for each recipient: group or '',
--         id, notice (JSON), ms from one notice of a group to the next
-- Returns 1; 0 where another process was here.
--
-- A notice that waits takes further events of its group, so that what comes and goes makes no flood.
if (redis.call('HGET', KEYS[1], 'router') or '') ~= ARGV[1] then
  return 0
end
local now = tonumber(ARGV[3])
for i = 6, #ARGV, 4 do
  local group, id = ARGV[i], ARGV[i + 1]
  local open = group ~= '' and redis.call('HGET', KEYS[4], group)
  local waiting = open and redis.call('HGET', KEYS[2], open)
  if waiting then
    local notice = cjson.decode(waiting)
    if #notice.events < tonumber(ARGV[5]) then
      notice.events[#notice.events + 1] = ARGV[4]
    else
      notice.more = notice.more + 1
    end
    redis.call('HSET', KEYS[2], open, cjson.encode(notice))
  else
    local due = now
    if group ~= '' then
      due = math.max(due, tonumber(redis.call('HGET', KEYS[5], group) or '0') + tonumber(ARGV[i + 3]))
      redis.call('HSET', KEYS[4], group, id)
    end
    redis.call('HSET', KEYS[2], id, ARGV[i + 2])
    redis.call('ZADD', KEYS[3], string.format('%.0f', due), id)
  end
end
redis.call('HSET', KEYS[1], 'router', ARGV[2])
return 1
