-- Returns count of changes, all fields, and pairs: the checkpoints' records, the heads, the contents that fields name.
local fields = redis.call('HKEYS', KEYS[1])
local pairs_of = {c = {}, h = {}, b = {}, w = {}}
local contents = pairs_of.b
pairs_of.w = contents
for _, field in ipairs(fields) do
  local kind = string.sub(field, 1, 1)
  local found = string.sub(field, 2, 2) == NUL and pairs_of[kind]
  if found then
    local value = redis.call('HGET', KEYS[1], field)
    if found == contents then value = digest_in(value) end
    if value then
      found[#found + 1] = field
      found[#found + 1] = value
    end
  end
end
return {redis.call('HGET', KEYS[1], 'r') or '', fields, pairs_of.c, pairs_of.h, contents}
