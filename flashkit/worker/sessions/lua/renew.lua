-- ARGV: incarnation, fence, nonce, lease ms
local refusal = fenced(ARGV[1], ARGV[2], ARGV[3])
if refusal then return refusal end
local now = now_ms()
local meta = redis.call('HMGET', KEYS[1], 'keep', 'posted', 'inbox', 'ends')
redis.call('HINCRBY', KEYS[1], 'hb', 1)
redis.call('HSET', KEYS[1], 'until', now + tonumber(ARGV[4]))
local ends, is_new_end = ending(now, meta[1], meta[4])
if is_new_end then keep_all(ends) end
return {'OK', now, tonumber(meta[2]) - tonumber(meta[3])}
