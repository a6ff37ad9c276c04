-- KEYS: 1 claim. ARGV: claim | settle | unclaim, holder, lease ms, retention ms, result
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local found = redis.call('HMGET', KEYS[1], 'holder', 'until', 'result')
if ARGV[1] == 'claim' then
  if found[3] then return {'DONE', found[1], found[3]} end
  if found[1] and found[1] ~= ARGV[2] and tonumber(found[2]) > now then return {'TAKEN', found[1]} end
  redis.call('HSET', KEYS[1], 'holder', ARGV[2], 'until', now + tonumber(ARGV[3]))
  redis.call('PEXPIRE', KEYS[1], ARGV[4])
  return {'MINE', ARGV[2]}
end
if found[1] ~= ARGV[2] then return {'LOST'} end
if ARGV[1] == 'unclaim' then
  if found[3] then return {'LOST'} end
  redis.call('DEL', KEYS[1])
  return {'OK'}
end
if not found[3] then redis.call('HSET', KEYS[1], 'result', ARGV[5]) end
redis.call('PEXPIRE', KEYS[1], ARGV[4])
return {'OK'}
