-- KEYS: 1 the copy in the making, 2 the target. ARGV: ttl ms, then pairs; without pairs the copy is finished.
if #ARGV > 1 then
  redis.call('HSET', KEYS[1], unpack(ARGV, 2, #ARGV))
  redis.call('PEXPIRE', KEYS[1], ARGV[1])
  return {'OK'}
end
if redis.call('EXISTS', KEYS[1]) == 0 then return {'OK'} end -- this very call was answered, but the answer was lost
if redis.call('EXISTS', KEYS[2]) == 1 then
  redis.call('UNLINK', KEYS[1])
  return {'TAKEN'}
end
redis.call('RENAME', KEYS[1], KEYS[2])
redis.call('PEXPIRE', KEYS[2], ARGV[1])
return {'OK'}
