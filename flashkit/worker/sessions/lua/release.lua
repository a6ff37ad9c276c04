-- ARGV: incarnation, fence, nonce. Deletes a field instead of writing it: that works on a full server too.
local refusal = fenced(ARGV[1], ARGV[2], ARGV[3])
if refusal then return refusal end
local now = now_ms()
if redis.call('HDEL', KEYS[1], 'until') == 1 and redis.call('HGET', KEYS[1], 'attempts') ~= '0' then
  redis.pcall('HINCRBY', KEYS[1], 'attempts', -1) -- a worker that stops in order is no failed attempt
end
return {'OK', now}
