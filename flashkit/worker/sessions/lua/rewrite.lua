-- Puts other data in the place of a session's own, and gives the lease back.
-- ARGV: incarnation, fence, nonce, expected seq, snapshot 0/1, numbers of fields, of earlier snapshots and of blobs.
-- After them: the snapshot, pairs of fields, of turns and snapshots, of names and blobs, of numbers and records.
local refusal = fenced(ARGV[1], ARGV[2], ARGV[3])
if refusal then return refusal end
local now = now_ms()
local meta = redis.call('HMGET', KEYS[1], 'seq', 'hb', 'bb', 'last')
if meta[1] ~= ARGV[4] then return {'SEQ', tonumber(meta[1]), meta[4]} end
local fields_at = ARGV[5] == '1' and 10 or 9
local history_at = fields_at + 2 * tonumber(ARGV[6])
local blobs_at = history_at + 2 * tonumber(ARGV[7])
local records_at = blobs_at + 2 * tonumber(ARGV[8])
local hb, sb, hs, bb, jb = tonumber(meta[2]), 0, 0, tonumber(meta[3]), 0
local before = 0
for i = records_at, #ARGV, 2 do
  local number = tonumber(ARGV[i])
  if not number or number <= before or not ARGV[i + 1] then
    return redis.error_reply('ERR record ' .. ARGV[i] .. ' of a rewrite cannot stand after ' .. before)
  end
  before = number
end
for i = blobs_at, records_at - 1, 2 do
  bb = bb + #ARGV[i + 1] - redis.call('HSTRLEN', KEYS[7], ARGV[i])
end

-- From here on only writes.
redis.call('HSET', KEYS[1], 'updated', now, 'until', 0, 'hb', hb + 1, 'attempts', 0)
redis.call('DEL', KEYS[2], KEYS[3], KEYS[4])
for i = records_at, #ARGV - 1, 2 do
  redis.call('XADD', KEYS[2], ARGV[i] .. '-0', 'r', ARGV[i + 1])
  jb = jb + #ARGV[i + 1]
end
if ARGV[5] == '1' then
  redis.call('SET', KEYS[3], ARGV[9])
  sb = #ARGV[9]
end
for i = history_at, blobs_at - 1, 2 do
  redis.call('HSET', KEYS[4], ARGV[i], ARGV[i + 1])
  hs = hs + #ARGV[i + 1]
end
for i = blobs_at, records_at - 1, 2 do
  redis.call('HSET', KEYS[7], ARGV[i], ARGV[i + 1])
end
for i = fields_at, history_at - 1, 2 do
  redis.call('HSET', KEYS[1], ARGV[i], ARGV[i + 1])
end
redis.call('HSET', KEYS[1], 'jb', jb, 'sb', sb, 'hs', hs, 'bb', bb)
keep_all((ending(now, redis.call('HGET', KEYS[1], 'keep'))))
return {'OK', now, 0}
