-- ARGV: namespace, id or '' for the head. Returns id, head, record, names of writes, and for
-- values and then for writes: what the fields hold (nil where there is none), and the contents that they name.
local head = redis.call('HGET', KEYS[1], 'h' .. NUL .. ARGV[1])
local id = ARGV[2] ~= '' and ARGV[2] or head
if not id then return {} end
local record = redis.call('HGET', KEYS[1], 'c' .. NUL .. ARGV[1] .. NUL .. id)
if not record then return {} end

local function fetch(stem, names)
  local found, contents = {}, {}
  for i, name in ipairs(names) do
    found[i] = redis.call('HGET', KEYS[1], stem .. name)
    local digest = digest_in(found[i])
    contents[i] = digest and redis.call('HGET', KEYS[1], 'd' .. NUL .. digest)
  end
  for i = 1, #names do contents[i] = contents[i] or false end
  return found, contents
end

local function names_in(text)
  local names = {}
  for first, second in string.gmatch(text, '(%Z*)%z(%Z*)%z') do
    names[#names + 1] = first .. NUL .. second
  end
  return names
end

local length, start = string.match(record, '^(%d+):()')
local values = length and names_in(string.sub(record, start, start + tonumber(length) - 1)) or {} -- damage is seen later
local writes = names_in(redis.call('HGET', KEYS[1], 'n' .. NUL .. ARGV[1] .. NUL .. id) or '')
local found, contents = fetch('b' .. NUL .. ARGV[1] .. NUL, values)
local written, written_contents = fetch('w' .. NUL .. ARGV[1] .. NUL .. id .. NUL, writes)
return {id, head or '', record, writes, found, contents, written, written_contents}
