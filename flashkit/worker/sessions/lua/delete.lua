-- ARGV: force 0/1
local now = now_ms()
local meta = redis.call('HMGET', KEYS[1], 'inc', 'owner', 'until')
if not meta[1] then return {'MISSING'} end
if ARGV[1] ~= '1' and tonumber(meta[3] or 0) > now then
  return {'BUSY', meta[2], tonumber(meta[3]) - now}
end
redis.call('UNLINK', unpack(KEYS))
return {'OK'}
