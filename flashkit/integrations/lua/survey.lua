-- Returns count of changes, all fields, and pairs: the checkpoints' records, the heads.
local fields = redis.call('HKEYS', KEYS[1])
local pairs_of = {c = {}, h = {}}
for _, field in ipairs(fields) do
  local found = string.sub(field, 2, 2) == NUL and pairs_of[string.sub(field, 1, 1)]
  if found then
    found[#found + 1] = field
    found[#found + 1] = redis.call('HGET', KEYS[1], field)
  end
end
return {redis.call('HGET', KEYS[1], 'r') or '', fields, pairs_of.c, pairs_of.h}
