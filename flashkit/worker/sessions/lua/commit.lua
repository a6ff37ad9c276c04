-- ARGV: 1 incarnation, 2 fence, 3 nonce, 4 expected seq, 5 lease ms, 6 release 0/1, 7 progress 0/1,
-- 8 checksum of the last record, 9 most bytes, 10 most records, 11 snapshot or '', 12 turn, 13 trim 0/1,
-- 14 history, 15 consumed or '', 16 n fields, then pairs; n answers, then pairs; the rest are records.
local refusal = fenced(ARGV[1], ARGV[2], ARGV[3])
if refusal then return refusal end
local now = now_ms()
local meta = redis.call('HMGET', KEYS[1],
  'seq', 'last', 'hb', 'jb', 'sb', 'hs', 'bb', 'keep', 'inbox', 'posted', 'turn', 'attempts')
local seq, jb, sb, hs, bb = tonumber(meta[1]), tonumber(meta[4]), tonumber(meta[5]), tonumber(meta[6]), tonumber(meta[7])
local inbox, posted = tonumber(meta[9]), tonumber(meta[10])
local expected, release = tonumber(ARGV[4]), ARGV[6] == '1'
local at = 16
local n_fields = tonumber(ARGV[at])
local fields_at = at + 1
at = fields_at + 2 * n_fields
local n_answers = tonumber(ARGV[at])
local answers_at = at + 1
local records_at = answers_at + 2 * n_answers
local n = #ARGV - records_at + 1
local lease_until = release and 0 or now + tonumber(ARGV[5])

if n > 0 and seq == expected + n and meta[2] == ARGV[8] then -- the reply to this very write was lost
  redis.call('HSET', KEYS[1], 'until', lease_until, 'hb', tonumber(meta[3]) + 1)
  return {'OK', now, posted - inbox, 1}
end
if seq ~= expected then return {'SEQ', seq, meta[2]} end

local has_snapshot = ARGV[11] ~= ''
local trims = has_snapshot and ARGV[13] == '1'
local old_turn, new_turn, history = tonumber(meta[11]), tonumber(ARGV[12]), tonumber(ARGV[14])
local added = 0
for i = records_at, #ARGV do added = added + #ARGV[i] end
if trims then jb = 0 else jb = jb + added end
local archives = has_snapshot and history > 0 and sb > 0 and old_turn ~= new_turn
local later_hs = archives and hs + sb or hs
local later_sb = has_snapshot and #ARGV[11] or sb
local total = jb + later_sb + later_hs + bb
if total > tonumber(ARGV[9]) then return {'TOOBIG', total} end
if not trims and n > 0 and redis.call('XLEN', KEYS[2]) + n > tonumber(ARGV[10]) then return {'TOOLONG', seq} end
if ARGV[15] ~= '' then inbox = math.max(inbox, math.min(tonumber(ARGV[15]), posted)) end

-- From here on only writes.
for i = records_at, #ARGV do
  seq = seq + 1
  redis.call('XADD', KEYS[2], string.format('%d-0', seq), 'r', ARGV[i])
end
local last = n > 0 and ARGV[8] or meta[2]
if has_snapshot then
  if archives then
    redis.call('HSET', KEYS[4], old_turn, redis.call('GET', KEYS[3]))
    hs = later_hs
    local turns = redis.call('HKEYS', KEYS[4])
    table.sort(turns, function(a, b) return tonumber(a) < tonumber(b) end)
    for i = 1, #turns - history do
      hs = hs - redis.call('HSTRLEN', KEYS[4], turns[i])
      redis.call('HDEL', KEYS[4], turns[i])
    end
  end
  redis.call('SET', KEYS[3], ARGV[11])
  if trims then redis.call('XTRIM', KEYS[2], 'MINID', string.format('%d-0', seq + 1)) end
  redis.call('HSET', KEYS[1], 'snap', seq, 'turn', new_turn, 'sb', later_sb, 'hs', hs)
end
redis.call('HSET', KEYS[1], 'seq', seq, 'last', last, 'hb', tonumber(meta[3]) + 1, 'until', lease_until,
  'updated', now, 'jb', jb)
if ARGV[7] == '1' then redis.call('HSET', KEYS[1], 'attempts', 0) end
if ARGV[15] ~= '' then
  redis.call('HSET', KEYS[1], 'inbox', inbox)
  redis.call('XTRIM', KEYS[5], 'MINID', string.format('%d-0', inbox + 1))
end
for i = fields_at, fields_at + 2 * n_fields - 1, 2 do
  redis.call('HSET', KEYS[1], ARGV[i], ARGV[i + 1])
end
for i = answers_at, answers_at + 2 * n_answers - 1, 2 do
  local number = string.match(redis.call('HGET', KEYS[6], ARGV[i]) or '0', '^%d+')
  redis.call('HSET', KEYS[6], ARGV[i], number .. ' ' .. ARGV[i + 1])
end
keep(redis.call('HGET', KEYS[1], 'keep'))
return {'OK', now, posted - inbox, 0}
