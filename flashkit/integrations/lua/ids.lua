-- ARGV: namespace, 1 for this one only or 0 for all. Returns fields of checkpoints.
local wanted = {}
local stem = ARGV[2] == '1' and 'c' .. NUL .. ARGV[1] .. NUL or 'c' .. NUL
for _, field in ipairs(redis.call('HKEYS', KEYS[1])) do
  if string.sub(field, 1, #stem) == stem then wanted[#wanted + 1] = field end
end
return wanted
