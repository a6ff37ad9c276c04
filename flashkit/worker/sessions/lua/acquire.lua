-- ARGV: session, incarnation and nonce to use, owner, lease ms, retention ms, witness or '', most attempts, unblock 0/1,
-- info or '', with data 0/1
local now = now_ms()
local found = redis.call('HMGET', KEYS[1],
  'inc', 'owner', 'until', 'hb', 'fence', 'ttl', 'status', 'err', 'attempts', 'keep', 'ends')
local lease_ms, most_attempts = tonumber(ARGV[5]), tonumber(ARGV[8])
local born = not found[1]
local unblock = ARGV[9] == '1'

if found[2] and found[2] ~= ARGV[4] and tonumber(found[3] or 0) > now and found[4] ~= ARGV[7] then
  return {'BUSY', now, found[2], found[3], found[4], found[5], found[6]}
end
if found[7] == 'blocked' and not unblock then
  return {'BLOCKED', found[8] or ''}
end
local attempts = unblock and 0 or tonumber(found[9] or 0)
if attempts >= most_attempts then
  local reason = string.format('%d workers in a row ended without progress; the last was %s', attempts, found[2] or '')
  redis.call('HSET', KEYS[1], 'status', 'blocked', 'err', reason, 'updated', now)
  return {'BLOCKED', reason}
end

local head = redis.call('HGETALL', KEYS[1])
if born then
  redis.call('HSET', KEYS[1], 'sid', ARGV[1], 'inc', ARGV[2], 'fmt', 1, 'seq', 0, 'last', 0, 'snap', 0, 'turn', 0,
    'inbox', 0, 'posted', 0, 'jb', 0, 'sb', 0, 'hs', 0, 'bb', 0, 'created', now, 'keep', ARGV[6], 'status', 'running')
  forget_rest()
elseif found[7] ~= 'done' and found[7] ~= 'failed' then
  redis.call('HSET', KEYS[1], 'status', 'running')
end
redis.call('HSET', KEYS[1], 'fence', tonumber(found[5] or 0) + 1, 'nonce', ARGV[3], 'owner', ARGV[4],
  'until', now + lease_ms, 'hb', tonumber(found[4] or 0) + 1, 'ttl', lease_ms, 'attempts', attempts + 1,
  'updated', now)
if ARGV[10] ~= '' then redis.call('HSET', KEYS[1], 'info', ARGV[10]) end
local ends, is_new_end = ending(now, found[10] or ARGV[6], found[11])
if is_new_end then keep_all(ends) end
local reply = {'OK', now, tonumber(found[5] or 0) + 1, head}
if ARGV[11] == '1' then
  reply[5], reply[6] = redis.call('GET', KEYS[3]), redis.call('XRANGE', KEYS[2], '-', '+')
end
return reply
