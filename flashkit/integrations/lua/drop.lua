-- ARGV: count of changes that the plan was made for, how many pairs to set, those pairs, then fields to remove.
if (redis.call('HGET', KEYS[1], 'r') or '') ~= ARGV[1] then return {'CHANGED'} end
local last_pair = 2 + 2 * tonumber(ARGV[2])
for i = 3, last_pair, 2 do
  redis.call('HSET', KEYS[1], ARGV[i], ARGV[i + 1])
end
in_chunks(last_pair + 1, #ARGV, 1000, function(from, to)
  redis.call('HDEL', KEYS[1], unpack(ARGV, from, to))
end)
if redis.call('EXISTS', KEYS[1]) == 1 then redis.call('HINCRBY', KEYS[1], 'r', 1) end
return {'OK'}
