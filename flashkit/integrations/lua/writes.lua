-- ARGV: ttl ms, namespace, id, how many contents, pairs of their fields and bytes, then triples of
-- name (task NUL index), 1 to replace or 0 to keep the first, value.
local first = 5 + 2 * tonumber(ARGV[4])
in_chunks(5, first - 1, 1000, function(from, to)
  redis.call('HSET', KEYS[1], unpack(ARGV, from, to))
end)
local index_field = 'n' .. NUL .. ARGV[2] .. NUL .. ARGV[3]
local stem = 'w' .. NUL .. ARGV[2] .. NUL .. ARGV[3] .. NUL
local added = {}
for i = first, #ARGV, 3 do
  local field = stem .. ARGV[i]
  if redis.call('HEXISTS', KEYS[1], field) == 0 then
    added[#added + 1] = ARGV[i] .. NUL
    redis.call('HSET', KEYS[1], field, ARGV[i + 2])
  elseif ARGV[i + 1] == '1' then
    redis.call('HSET', KEYS[1], field, ARGV[i + 2])
  end
end
if #added > 0 then
  local index = redis.call('HGET', KEYS[1], index_field) or ''
  redis.call('HSET', KEYS[1], index_field, index .. table.concat(added))
end
changed(ARGV[1])
return {'OK'}
