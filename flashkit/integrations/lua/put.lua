-- ARGV: ttl ms, namespace, id, parent or '', how (head | branch | empty | any), record, then pairs of field and value.
local ttl, ns, id, parent, how = ARGV[1], ARGV[2], ARGV[3], ARGV[4], ARGV[5]
local head = redis.call('HGET', KEYS[1], 'h' .. NUL .. ns)
local field = 'c' .. NUL .. ns .. NUL .. id
local repeated = head == id and redis.call('HEXISTS', KEYS[1], field) == 1

if not repeated then
  if how == 'head' and head ~= parent then return {'STALE', head or ''} end
  if how == 'empty' and head then return {'STALE', head} end
  if how == 'branch' and parent ~= '' and redis.call('HEXISTS', KEYS[1], 'c' .. NUL .. ns .. NUL .. parent) == 0 then
    return {'STALE', head or ''}
  end
end
in_chunks(7, #ARGV, 1000, function(from, to)
  redis.call('HSET', KEYS[1], unpack(ARGV, from, to))
end)
redis.call('HSET', KEYS[1], field, ARGV[6], 'h' .. NUL .. ns, id)
changed(ttl)
return {'OK', id}
