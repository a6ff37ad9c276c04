-- ARGV: session, incarnation to use, message id, body, most waiting, retention ms, name of the event or ''
local now = now_ms()
local meta = redis.call('HMGET', KEYS[1], 'inc', 'posted', 'inbox', 'status', 'keep', 'unread', 'awaits', 'ends')
local posted, inbox = tonumber(meta[2] or 0), tonumber(meta[3] or 0)
local known = meta[1] and redis.call('HGET', KEYS[6], ARGV[3])
if known then
  return {'KNOWN', now, known, posted - inbox, meta[4] or 'idle'}
end
local waiting = posted - inbox + tonumber(meta[6] or 0)
local is_awaited = ARGV[7] ~= '' and meta[7] == ARGV[7]
if waiting >= tonumber(ARGV[5]) and not is_awaited then
  return {'FULL', waiting}
end

local ends, is_new_end = ending(now, meta[5] or ARGV[6], meta[8])
local number = posted + 1
if not meta[1] then
  redis.call('HSET', KEYS[1], 'sid', ARGV[1], 'inc', ARGV[2], 'fmt', 1, 'fence', 0, 'hb', 0, 'seq', 0, 'last', 0,
    'snap', 0, 'turn', 0, 'inbox', 0, 'jb', 0, 'sb', 0, 'hs', 0, 'bb', 0, 'attempts', 0, 'created', now,
    'keep', ARGV[6], 'status', 'idle')
  forget_rest()
end
redis.call('XADD', KEYS[5], string.format('%d-0', number), 'id', ARGV[3], 'b', ARGV[4])
redis.call('HSET', KEYS[6], ARGV[3], number)
redis.call('HSET', KEYS[1], 'posted', number, 'updated', now)
if is_awaited then redis.call('HSET', KEYS[1], 'awaits', '') end -- it is there: the next one counts as any other
if redis.call('HLEN', KEYS[6]) > 96 then -- remember the last 64 and all that wait
  local oldest = math.min(number - 64, inbox)
  local answers = redis.call('HGETALL', KEYS[6])
  for i = 1, #answers, 2 do
    if tonumber(string.match(answers[i + 1], '^%d+')) <= oldest then redis.call('HDEL', KEYS[6], answers[i]) end
  end
end
if is_new_end then
  keep_all(ends)
else
  redis.call('PEXPIREAT', KEYS[5], ends)
  redis.call('PEXPIREAT', KEYS[6], ends)
end
return {'OK', now, number, number - inbox, meta[4] or 'idle'}
