-- ARGV: name, data, most bytes
local meta = redis.call('HMGET', KEYS[1], 'inc', 'jb', 'sb', 'hs', 'bb', 'keep', 'ends')
if not meta[1] then return {'MISSING'} end
if redis.call('HEXISTS', KEYS[7], ARGV[1]) == 1 then
  return {'OK'}
end
local total = meta[2] + meta[3] + meta[4] + meta[5] + #ARGV[2]
if total > tonumber(ARGV[3]) then return {'TOOBIG', total} end
redis.call('HSET', KEYS[7], ARGV[1], ARGV[2])
redis.call('HINCRBY', KEYS[1], 'bb', #ARGV[2])
local ends, is_new_end = ending(now_ms(), meta[6], meta[7])
redis.call('PEXPIREAT', KEYS[7], ends)
if is_new_end then keep_all(ends) end
return {'OK'}
